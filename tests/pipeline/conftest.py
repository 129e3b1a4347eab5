"""Small real runs for the tests of pipeline/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datasets.config import DataConfig
from model.config import ModelConfig
from pipeline.config import CheckpointConfig, OptimizerConfig, TrainConfig, TrainerConfig
from pipeline.schedule.stages import ramp
from tests.support.shards import write_shards

torch.set_num_threads(1)  # as a worker with one CPU has it, and quick on a busy machine

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled training and validation shards: 137 and 30 images of 4 classes."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "train", [50, 64, 23])
    write_shards(folder / "val", [30])
    return folder


@pytest.fixture
def make_config(small_data: Path, tmp_path: Path) -> MakeConfig:
    """A small recipe: two stages, seconds long; takes replacements for fields of TrainConfig."""

    def make(**changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "name": "small",
            "storage": str(tmp_path / "runs"),
            "stages": ramp(
                epochs=4,
                batch_size=24,
                num_stages=2,
                image_size=(32, 48),
                randaugment_magnitude=(2, 6),
                mixup_alpha=(0.1, 0.2),
                dropout=(0.1, 0.3),
            ),
            "data": DataConfig(
                train=str(small_data / "train"), val=str(small_data / "val"), loader_workers=0, block_size=16
            ),
            "model": ModelConfig(name="efficientnet_v2_tiny", stochastic_depth=0.1, norm_momentum=0.1),
            "optimizer": OptimizerConfig(optimizer="rmsprop", lr=1e-3, warmup_epochs=1, ema_decay=0.9),
            "trainer": TrainerConfig(log_every=2, eval_batch_size=16),
            "checkpoint": CheckpointConfig(every_epochs=0.5, every_s=0),
        }
        return TrainConfig(**(values | changes))  # type: ignore[arg-type]

    return make

"""The factory of small configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets.config import DataConfig
from model.config import ModelConfig
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.schedule.stages import ramp
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig

MakeConfig = Callable[..., TrainConfig]
ROWS = (
    Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=16, layers=1),
    Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=24, layers=1),
    Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=32, layers=1),
    Block("MBConv", expansion=4, kernel=3, stride=2, channels=64, layers=2, se=0.25),
)
"""Half of efficientnet_v2_tiny: each kind of block, with and without a residual, and its stride of 16."""


def small_config(data: Path, storage: str, /, **changes: object) -> TrainConfig:
    """Return a recipe of two stages, seconds long, on `data/{train,val}`, with these fields replaced."""
    values: dict[str, object] = {
        "name": "small",
        "storage": storage,
        "stages": ramp(
            epochs=4,
            batch_size=24,
            num_stages=2,
            image_size=(32, 48),
            randaugment_magnitude=(2, 6),
            mixup_alpha=(0.1, 0.2),
            dropout=(0.1, 0.3),
        ),
        "data": DataConfig(train=str(data / "train"), val=str(data / "val"), loader_workers=0, block_size=16),
        "model": ModelConfig(name="efficientnet_v2_tiny", rows=ROWS, stochastic_depth=0.1, norm_momentum=0.1),
        "optimizer": OptimizerConfig(optimizer="rmsprop", lr=1e-3, warmup_epochs=1, ema_decay=0.9),
        "trainer": TrainerConfig(log_every=2, eval_batch_size=16),
        "checkpoint": CheckpointConfig(every_epochs=0.5, every_s=0),
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]

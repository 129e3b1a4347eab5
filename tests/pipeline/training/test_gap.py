"""The gap that the closed loop looks at, of models of which it is known whether they learned their data by heart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from torch import Tensor, nn

from datasets.checks import check_data
from datasets.shards.describe import write_manifest
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.config import TrainConfig
from pipeline.schedule.stages import AdaptiveConfig, ramp
from pipeline.training.task import build_task
from pipeline.training.trainer import Trainer
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.shards import write_tar

GREYS = (30, 95, 160, 225)


def write_greys(folder: Path, count: int, *, shift: int = 0) -> None:
    """A shard of even images, of a grey for each label; with `shift`, of the label that is so much further."""
    folder.mkdir(parents=True)
    members: dict[str, bytes] = {}
    for number in range(count):
        pixels = np.full((32, 32, 3), GREYS[number % 4], np.uint8)
        members |= {f"{number:04d}.jpg": simplejpeg.encode_jpeg(pixels)}
        members |= {f"{number:04d}.cls": str((number + shift) % 4).encode()}
    write_tar(folder / "part-000000.tar", members)
    write_manifest(folder, ["part-000000.tar"], classes=list("abcd"))


class Oracle(nn.Module):
    """Knows the label of each grey, and is sure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.certainty = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        greys = (torch.tensor(GREYS, device=images.device) - 128) / 128
        return -self.certainty * (images.mean((1, 2, 3))[:, None] - greys).abs() * 4


def gap_config(make_config: MakeConfig, data: Path, *, magnitude: float, mixup: float) -> TrainConfig:
    base = make_config()
    stages = ramp(
        epochs=2,
        batch_size=24,
        num_stages=2,
        image_size=(32, 32),
        randaugment_magnitude=(magnitude, magnitude + 1),
        mixup_alpha=(mixup, mixup),
    )
    return replace(
        base,
        stages=stages,
        data=replace(base.data, train=str(data / "train"), val=str(data / "val")),
        optimizer=replace(base.optimizer, lr=0.0, ema_decay=0.0),
        adaptive=AdaptiveConfig(closed_loop=True, gap_samples=30),
    )


def measured(config: TrainConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Train (at a rate of 0) through the stages; return what the loop was told in the first, and in the last."""
    train, val = check_data(config.data, batch_sizes=[], worker_counts=[])
    trainer = Trainer(
        config,
        model=Oracle(),
        task=build_task(config.task, train.classes),
        train=train,
        val=val,
        hooks=Recorder(),
        metadata=RunMetadata(),
    )
    trainer.run()
    first, *_, last = trainer.state.evaluations
    return first, last


@pytest.mark.parametrize(("magnitude", "mixup"), [(0.0, 0.0), (0.0, 0.5), (9.0, 0.5)])
@pytest.mark.parametrize("by_heart", [False, True])
def test_the_gap_is_0_of_a_perfect_model_and_above_of_one_that_learned_by_heart(
    make_config: MakeConfig, tmp_path: Path, magnitude: float, mixup: float, by_heart: bool
) -> None:
    """However strong the augmentation. The gap to `train/loss` was -0.51, -1.15 and -1.92 for the perfect model."""
    write_greys(tmp_path / "train", 60)
    write_greys(tmp_path / "val", 40, shift=int(by_heart))
    row, last = measured(gap_config(make_config, tmp_path, magnitude=magnitude, mixup=mixup))
    gap = row["val/loss"] - row["train_eval/loss"]
    if by_heart:
        assert gap > 1
    else:
        assert gap == pytest.approx(0, abs=0.01)
        assert row["val/loss"] - row["train/loss"] < -0.3
    assert "train_eval/loss" not in last  # there is no stage after it to regularize


def test_without_a_closed_loop_nothing_more_is_measured(make_config: MakeConfig, tmp_path: Path) -> None:
    write_greys(tmp_path / "train", 60)
    write_greys(tmp_path / "val", 40)
    config = replace(gap_config(make_config, tmp_path, magnitude=0, mixup=0), adaptive=AdaptiveConfig())
    assert all("train_eval/loss" not in row for row in measured(config))


def test_a_mixtures_training_loss_is_of_its_shares(make_config: MakeConfig, tmp_path: Path) -> None:
    """Of two datasets alike in size, one is known by the model and one is wrong to it: by their shares in training."""
    write_greys(tmp_path / "known", 120)
    write_greys(tmp_path / "wrong", 120, shift=1)
    write_greys(tmp_path / "val", 120, shift=1)

    def loss(known: float, wrong: float) -> float:
        config = gap_config(make_config, tmp_path, magnitude=0, mixup=0)
        data = replace(config.data, train=f"{tmp_path / 'known'}::{tmp_path / 'wrong'}", train_weights=(known, wrong))
        adaptive = replace(config.adaptive, gap_samples=120)
        row, _ = measured(replace(config, data=data, adaptive=adaptive))
        return row["train_eval/loss"] / row["val/loss"]

    assert loss(0.8, 0.2) < 0.35
    assert loss(0.2, 0.8) > 0.65

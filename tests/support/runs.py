"""Runs that were really trained, in seconds and without a cluster, and are saved as a worker saves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from datasets.checks import check_data, data_fingerprint
from datasets.config import DataConfig
from datasets.loading.sample_order import sample_order
from infra.storage.open import open_storage
from model.config import ModelConfig
from model.factory import build_model
from model.tables import Block
from pipeline.checkpoint.format import Snapshot, write_checkpoint
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.config import TrainConfig
from pipeline.run.preflight import check_run
from pipeline.run.provenance import recorded_config, versions
from pipeline.schedule.stages import ramp
from pipeline.task_config import MultilabelConfig, RegressionConfig, SegmentationConfig
from pipeline.training.hooks import TrainHooks
from pipeline.training.task import build_task
from pipeline.training.trainer import Trainer
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig
from tests.support.configs import ROWS
from tests.support.shards import write_mask_shards, write_multilabel_shards, write_shards, write_target_shards

torch.set_num_threads(1)  # small models gain nothing from more, and lose much where other processes have the cores


@dataclass(frozen=True)
class TrainedRun:
    """A run in storage, and the data that it was trained on."""

    folder: Path
    """Of the run: `folder.parent` is its storage, `folder.name` its name."""
    data: Path
    """With the splits `train` and `val`."""


class _Writer(TrainHooks):
    def __init__(self, folder: Path) -> None:
        self.storage = open_storage(folder)

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        write_checkpoint(self.storage, snapshot())


def train_classifier(folder: Path) -> TrainedRun:
    """4 classes, 6 epochs at 32 px and 6 at 48 px: enough to be right mostly. Its rows are its own."""
    data = folder / "data"
    write_shards(data / "train", [60, 60])
    write_shards(data / "val", [30])
    train_here(_config(folder, "efficientnet_v2_tiny", epochs=12, lr=1e-2, rows=ROWS))
    return TrainedRun(folder / "runs/small", data)


def train_segmenter(folder: Path) -> TrainedRun:
    """3 classes, 2 epochs at 32 px and 2 at 48 px; the whole image is evaluated. Its rows are its own."""
    data = folder / "data"
    write_mask_shards(data / "train", [60])
    write_mask_shards(data / "val", [14])
    train_here(_config(folder, "unet_efficientnet_v2_tiny", epochs=4, lr=4e-3, rows=ROWS, task=SegmentationConfig()))
    return TrainedRun(folder / "runs/small", data)


def train_multilabel(folder: Path) -> TrainedRun:
    """3 classes of which an image has any number, 5 epochs at 32 px and 5 at 48 px: enough to be right mostly."""
    data = folder / "data"
    write_multilabel_shards(data / "train", [48, 48])
    write_multilabel_shards(data / "val", [27])
    config = _config(folder, "efficientnet_v2_tiny", epochs=10, lr=1e-2, task=MultilabelConfig())
    train_here(replace(config, checkpoint=replace(config.checkpoint, best_metric="val/map")))
    return TrainedRun(folder / "runs/small", data)


def train_regression(folder: Path) -> TrainedRun:
    """2 numbers an image, 8 epochs at 32 px and 8 at 48 px: enough to be nearly right."""
    data = folder / "data"
    write_target_shards(data / "train", [48, 48])
    write_target_shards(data / "val", [27])
    config = _config(folder, "efficientnet_v2_tiny", epochs=16, lr=1e-2, task=RegressionConfig())
    rules = replace(config.checkpoint, best_metric="val/mae", best_is="lowest")
    train_here(check_run(replace(config, checkpoint=rules, data=replace(config.data, crop_area=(1.0, 1.0)))).config)
    return TrainedRun(folder / "runs/small", data)


def _config(
    folder: Path, model: str, *, epochs: int, lr: float, rows: tuple[Block, ...] = (), **changes: object
) -> TrainConfig:
    values: dict[str, object] = {
        "name": "small",
        "storage": str(folder / "runs"),
        "stages": ramp(epochs=epochs, batch_size=24, num_stages=2, image_size=(32, 48), randaugment_magnitude=(0, 0)),
        "data": DataConfig(
            train=str(folder / "data/train"),
            val=str(folder / "data/val"),
            loader_workers=0,
            crop_area=(0.5, 1.0),
            eval_crop="whole",
        ),
        "model": ModelConfig(name=model, rows=rows, stochastic_depth=0.0, norm_momentum=0.1),
        "optimizer": OptimizerConfig(optimizer="adamw", lr=lr, warmup_epochs=1, schedule="cosine", ema_decay=0.8),
        "trainer": TrainerConfig(eval_batch_size=16, eval_every_epochs=3),
        "checkpoint": CheckpointConfig(every_epochs=3, every_s=0),
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def train_here(config: TrainConfig) -> None:
    """Train a run from its start to its end in this process, with its checkpoints in its storage."""
    torch.manual_seed(config.seed)
    manifest, val = check_data(
        config.data, batch_sizes=[stage.batch_size for stage in config.stages], worker_counts=[1]
    )
    order = sample_order(config.data, manifest, seed=config.seed)
    task = build_task(config.task, manifest.classes)
    Trainer(
        config,
        model=build_model(config.model, num_classes=task.num_outputs),
        task=task,
        train=manifest,
        val=val,
        hooks=_Writer(Path(config.storage) / config.name),
        metadata=RunMetadata(
            config=recorded_config(config),
            data=data_fingerprint(order, manifest),
            versions=versions(),
            classes=tuple(manifest.classes),
        ),
    ).run()

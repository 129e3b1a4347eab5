"""`TrainConfig`: the complete definition of a run, composed of the configs of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from datasets.config import DataConfig
from infra.cluster.config import ClusterConfig
from infra.tracking.config import TrackingConfig
from model.config import UNETS, ModelConfig
from pipeline.schedule.stages import MAX_IMAGE_SIZE, AdaptiveConfig, TrainingStage, Workers, worker_range
from pipeline.task_config import ClassificationConfig, TaskConfig
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_run_name(name: str) -> None:
    """Raise ValueError for a name that could not be a folder of its own inside a storage."""
    if not name or set(name) - _NAME_CHARACTERS or not name.strip("."):
        raise ValueError(
            f"name is {name!r}: use letters, digits, '.', '_' and '-', and not dots alone (it becomes a folder's name)"
        )


def numbers_of(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield each float of a config, of its parts and its tuples, with its name, such as `stages.0.epochs`."""
    parts: dict[Any, object] = {}
    if is_dataclass(value):
        parts = {one.name: getattr(value, one.name) for one in fields(value)}
    elif isinstance(value, tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, float):
        yield name, value
    for key, part in parts.items():
        yield from numbers_of(part, f"{name}.{key}" if name else key)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole training run. Made by a recipe; variants by `dataclasses.replace` or on the command line."""

    name: str
    """Name of the run. Submitting the same name again resumes it."""
    storage: str = "runs"
    """Folder or `s3://bucket/prefix` for runs; this run's checkpoints are written to a folder with its name in it."""
    resume_from: str = ""
    """Another run's folder or checkpoint, local or `s3://`, to continue from with its complete state: weights,
    optimizer, cursor. Ignored once this run has a checkpoint of its own. To take only weights, use
    `model.init_from`."""
    seed: int = 0
    """Seed of all randomness: initial weights, sample order, augmentation, Mixup, dropout."""
    stages: tuple[TrainingStage, ...]
    """The stages of progressive learning, in order."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    """How stages adapt to the run's progress: plateaus, closed-loop regularization, automatic batch sizes."""
    data: DataConfig
    """The data: where it is, and how it is read and augmented."""
    model: ModelConfig
    """The network."""
    task: TaskConfig = field(default_factory=ClassificationConfig)
    """The task: targets, loss, metrics."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer, learning rate, weight decay, moving average."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The training loop: precision, gradient accumulation, evaluation, logging."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written and which are kept."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is recorded in MLflow."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster, the number of workers and the resources of each."""

    def __post_init__(self) -> None:
        check_run_name(self.name)
        for name, number in numbers_of(self):
            if not math.isfinite(number):
                raise ValueError(f"{name} is {number}: it must be a finite number")
        if not self.stages:
            raise ValueError("stages is empty: a run needs at least one stage")
        if (size := max(map(self.trainer.eval_size, self.stages))) > MAX_IMAGE_SIZE:
            raise ValueError(
                f"trainer.eval_scale is {self.trainer.eval_scale:g}: a stage would be evaluated at {size:,} px, and "
                f"{MAX_IMAGE_SIZE:,} are the most"
            )
        if self.adaptive.closed_loop and any(stage.fixres for stage in self.stages):
            raise ValueError(
                "adaptive.closed_loop chooses each next stage's regularization, and a stage with fixres is to have its "
                "own: turn one of the two off"
            )
        self._check_channels()
        if (self.kind == "segmentation") != (self.model.name in UNETS):
            wanted = "a segmentation model (unet_ and an EfficientNet's name)"
            if self.kind != "segmentation":
                wanted = "a recipe whose task is segmentation, such as unet_demo"
            raise ValueError(f"model.name is {self.model.name}, which doesn't fit the recipe's task: take {wanted}")

    def _check_channels(self) -> None:
        data, trainer = self.data, self.trainer
        if self.model.in_channels != data.channels:
            raise ValueError(
                f"model.in_channels is {self.model.in_channels}, but images are read as {data.pixels}: set "
                f"--model.in-channels {data.channels}, or data.pixel_type and data.channels to what the images hold"
            )
        if trainer.channel_mean and len(trainer.channel_mean) != data.channels:
            raise ValueError(
                f"trainer.channel_mean and channel_std have {len(trainer.channel_mean)} numbers, but data.channels is "
                f"{data.channels}: give one a channel"
            )
        if not data.pixels.is_rgb and data.randaugment_policy != "geometric":
            raise ValueError(
                f"data.randaugment_policy is {data.randaugment_policy}, whose colour operations are for RGB of 8 bits, "
                f"but data.pixel_type is {data.pixel_type}: use --data.randaugment-policy geometric"
            )

    @property
    def kind(self) -> str:
        """Kind of data that the task learns from: `classification`, `segmentation`, `multilabel` or `regression`."""
        return self.task.kind

    def workers_of(self, stage: TrainingStage) -> Workers:
        """Return the workers that train a stage, or the range of them."""
        return stage.workers(self.cluster.num_workers)

    def stochastic_depth_of(self, stage: TrainingStage) -> float:
        """Return the drop probability of the last residual block in a stage."""
        return self.model.stochastic_depth if stage.stochastic_depth is None else stage.stochastic_depth

    @property
    def worker_counts(self) -> list[int]:
        """Every number of workers that the run names; in a range between two, only divisors of the lanes are used."""
        asked = [worker_range(self.workers_of(stage)) for stage in self.stages]
        return sorted({count for low_high in asked for count in low_high})

    @property
    def folder(self) -> str:
        """Folder or URI of everything that the run leaves: checkpoints, config, reports."""
        return f"{self.storage}/{self.name}"

    @property
    def possible_workers(self) -> list[int]:
        """Every number of workers that the run may have."""
        ranges = [worker_range(self.workers_of(stage)) for stage in self.stages]
        divisors = [count for count in range(1, self.data.num_lanes + 1) if self.data.num_lanes % count == 0]
        return [count for count in divisors if any(low <= count <= high for low, high in ranges)]

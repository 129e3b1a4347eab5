"""`TrainConfig`: everything that a run is, composed from the configs of those who use them. It holds no logic."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.tracking import TrackingConfig

from datasets.loader import DataConfig
from infra.cluster import ClusterConfig
from model.factory import ModelConfig
from pipeline.checkpoint import CheckpointConfig
from pipeline.evaluation import TrainerConfig
from pipeline.optim import OptimizerConfig
from pipeline.stages import TrainingStage
from pipeline.task import ClassificationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole training run. Made by a recipe; variants by `dataclasses.replace` or on the command line."""

    name: str
    """Name of the run. Submitting the same name again resumes it."""
    storage: str = "runs"
    """Folder or `s3://bucket/prefix` under which the run's checkpoints go, in a folder of the run's name."""
    seed: int = 0
    """Seed of everything random: weights, sample order, augmentation, Mixup, dropout."""
    stages: tuple[TrainingStage, ...]
    """The stages of progressive learning, in order."""
    data: DataConfig
    """What is trained on, and how it is read and augmented."""
    model: ModelConfig
    """The network."""
    task: ClassificationConfig = field(default_factory=ClassificationConfig)
    """What is learned: targets, loss, metrics."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer, learning rate, weight decay, moving average."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How steps are run: precision, accumulation, evaluation, logging."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written and which are kept."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is recorded."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster, the workers and what each gets."""

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - set(_NAME_CHARACTERS):
            raise ValueError(
                f"name is {self.name!r}: use letters, digits, '.', '_' and '-' (it becomes a folder's name)"
            )
        if not self.stages:
            raise ValueError("stages is empty: a run needs at least one stage")


_NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

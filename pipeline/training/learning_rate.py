"""The learning rate: a function of the cursor, so it is continuous over stages and the same for any worker count."""

from __future__ import annotations

import math

from pipeline.config import OptimizerConfig
from pipeline.schedule.stages import TrainingStage


def stage_learning_rate(
    config: OptimizerConfig, stage: TrainingStage, *, cursor: float, samples_per_epoch: int, total_samples: int
) -> float:
    """The rate of the step that starts at `cursor` samples of the plan in a stage, with the stage's own factor."""
    rate = learning_rate(config, cursor=cursor, samples_per_epoch=samples_per_epoch, total_samples=total_samples)
    return rate * stage.lr_factor


def learning_rate(config: OptimizerConfig, *, cursor: float, samples_per_epoch: int, total_samples: int) -> float:
    """The rate of the step that starts at `cursor` samples of the plan: the same for any batch, stage and worker count.

    `total_samples` is the length of the run; only the cosine needs it.
    """
    epoch = cursor / samples_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    return max(config.min_lr, config.lr * _schedule_factor(config, epoch, total_samples / samples_per_epoch))


def _schedule_factor(config: OptimizerConfig, epoch: float, total_epochs: float) -> float:
    if config.schedule == "exponential":
        periods = epoch / config.decay_epochs
        return config.decay_factor ** (math.floor(periods) if config.staircase else periods)
    if config.schedule == "cosine":
        length = max(total_epochs - config.warmup_epochs, 1e-9)
        progress = min((epoch - config.warmup_epochs) / length, 1.0)
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0

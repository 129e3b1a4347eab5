"""The learning rate: a function of the cursor, so it is continuous over stages and the same for any worker count."""

from __future__ import annotations

import math

from pipeline.schedule.stages import TrainingStage
from pipeline.training_config import OptimizerConfig

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4
"""The first and last rate as shares of the peak: PyTorch's defaults (arXiv 1708.07120)."""


def stage_learning_rate(
    config: OptimizerConfig, stage: TrainingStage, *, cursor: float, samples_per_epoch: int, total_samples: int
) -> float:
    """The rate of the step that starts at `cursor` samples of the plan: with the stage's own factor, for its batch."""
    rate = learning_rate(config, cursor=cursor, samples_per_epoch=samples_per_epoch, total_samples=total_samples)
    scale = stage.batch_size / config.lr_per_batch if config.lr_per_batch else 1.0
    return rate * stage.lr_factor * scale


def learning_rate(config: OptimizerConfig, *, cursor: float, samples_per_epoch: int, total_samples: int) -> float:
    """The rate of the step that starts at `cursor` samples of the plan: the same for any batch, stage and worker count.

    `total_samples` is the length of the run, which schedules that end at 0 need.
    """
    epoch = cursor / samples_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * _warmup_factor(config, epoch / config.warmup_epochs)
    return max(config.min_lr, config.lr * _schedule_factor(config, epoch, total_samples / samples_per_epoch))


def _warmup_factor(config: OptimizerConfig, progress: float) -> float:
    return _between(ONE_CYCLE_START, 1.0, progress) if config.schedule == "one-cycle" else progress


def _schedule_factor(config: OptimizerConfig, epoch: float, total_epochs: float) -> float:
    length = max(total_epochs - config.warmup_epochs, 1e-9)
    left = max(1 - (epoch - config.warmup_epochs) / length, 0.0)
    match config.schedule:
        case "exponential":
            periods = epoch / config.decay_epochs
            return config.decay_factor ** (math.floor(periods) if config.staircase else periods)
        case "cosine":
            return _between(1.0, 0.0, 1 - left)
        case "one-cycle":
            return _between(1.0, ONE_CYCLE_END, 1 - left)
        case "linear":
            return left
        case "polynomial":
            return left**config.power
        case "wsd":
            return min(1.0, max(1 - epoch / total_epochs, 0.0) / config.decay_share)
        case "constant":
            return 1.0


def _between(start: float, stop: float, progress: float) -> float:
    """Go from start to stop on half a cosine."""
    return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * progress))

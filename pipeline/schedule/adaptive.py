"""Rules that adapt a run to its progress: when a stage ends early, and how strongly to regularize the next.

Pure functions of what was measured; their results become decisions, which are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.schedule.stages import REGULARIZATION, AdaptiveConfig, TrainingStage

PLAIN_TRAINING_LOSS = "train_eval/loss"
"""The loss of training samples, measured as the validation loss is. `train/loss` is of smoothed, mixed and augmented
samples: even of a perfect model it is far above 0."""


def plateau(config: AdaptiveConfig, evaluations: Sequence[dict[str, float]], patience: int) -> str:
    """Say why a stage has nothing more to give, by its evaluations so far, oldest first; empty: it has.

    An evaluation is better when it beats the best one before it by more than `min_delta`.
    """
    sign = 1 if config.better == "highest" else -1
    values = [sign * row[config.metric] for row in evaluations if config.metric in row]
    if not values:
        return ""
    best, since = values[0], 0
    for value in values[1:]:
        better = value > best + config.min_delta
        best, since = (value, 0) if better else (best, since + 1)
    if since < patience:
        return ""
    return f"{config.metric} has not improved on {sign * best:.4g} for {since} evaluations"


def regularization_ranges(recipe: Sequence[TrainingStage]) -> dict[str, tuple[float, float]]:
    """Return the values of the first and the last stage of what grows or shrinks between them."""
    known = [name for name in REGULARIZATION if all(getattr(stage, name) is not None for stage in recipe)]
    ends = {name: (getattr(recipe[0], name), getattr(recipe[-1], name)) for name in known}
    return {name: span for name, span in ends.items() if span[0] != span[1]}


def next_regularization(
    config: AdaptiveConfig,
    recipe: Sequence[TrainingStage],
    now: TrainingStage,
    evaluations: Sequence[dict[str, float]],
) -> tuple[dict[str, Any], str]:
    """Choose the next stage's regularization from the gap between validation and plain training loss; say why.

    The recipe's first stage has strength 0 and its last one 1. A gap above the one that is wanted (the model learns its
    training data by heart) makes the next stage's strength larger than this one's, a smaller gap makes it smaller:
    by `gain` per unit of loss, within the range. Returns no values when nothing was measured, or nothing has a range.

    Args:
        config: the gap that is wanted, and the gain.
        recipe: the stages as the recipe has them.
        now: the stage that ends, as it was trained.
        evaluations: its evaluations, oldest first.
    """
    measured = [row for row in evaluations if "val/loss" in row and PLAIN_TRAINING_LOSS in row]
    ranges = regularization_ranges(recipe)
    if not measured or not ranges:
        return {}, ""
    name, (low, high) = next(iter(ranges.items()))
    before = (getattr(now, name) - low) / (high - low)
    train, val = measured[-1][PLAIN_TRAINING_LOSS], measured[-1]["val/loss"]
    strength = min(1.0, max(0.0, before + config.gain * (val - train - config.gap)))
    values = {name: low + (high - low) * strength for name, (low, high) in ranges.items()}
    reason = (
        f"regularization {before:.2f} -> {strength:.2f} of the recipe's range: validation loss {val:.3f}, "
        f"training loss {train:.3f} without augmentation, a gap of {val - train:.3f} (target: {config.gap:g})"
    )
    return values, reason

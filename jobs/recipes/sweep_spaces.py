"""The search spaces of the recipes: what `jobs.sweep RECIPE` varies. A recipe without one gets `default_space`."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import TrainConfig
from pipeline.sweep.space import Range, SweepSpace, default_space


def small() -> SweepSpace:
    """For small data. Where regularization ends; the first stage is the same for all trials, so that they share it."""
    return SweepSpace(randaugment_end=Range(0, 10), mixup_end=Range(0, 0.4), dropout_end=Range(0, 0.5))


def imagenet() -> SweepSpace:
    """The paper's ranges and somewhat beyond: starts on a grid, so that trials share stages, and ends."""
    return SweepSpace(
        randaugment_start=Range(0, 10, step=5),
        randaugment_end=Range(5, 30),
        mixup_end=Range(0, 0.8),
        dropout_end=Range(0.1, 0.6),
    )


SPACES: dict[str, Callable[[], SweepSpace]] = {
    "demo": small,
    "demo_scratch": small,
    "fonts": small,
    "fonts_small": small,
    **{f"efficientnetv2_{size}_{preset}": imagenet for size in "sml" for preset in ("paper", "google")},
}


def space_of(recipe: str, config: TrainConfig) -> SweepSpace:
    """Return a recipe's space."""
    return SPACES[recipe]() if recipe in SPACES else default_space(config)

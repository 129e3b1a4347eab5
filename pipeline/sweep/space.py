"""The search space of a sweep: ranges for the stages' start and end values, and how a point becomes a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pipeline.config import TrainConfig
from pipeline.schedule.ramp import ramped
from pipeline.schedule.stages import RAMPED, on_ramp
from pipeline.task_config import RegressionConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True, slots=True)
class Range:
    """Values from `low` to `high`, both included."""

    low: float
    high: float
    step: float | None = None
    """Distance between two values; None: any value. Trials can share their first stages only where values are equal."""
    log: bool = False
    """Draw the logarithm evenly, as for a learning rate."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"range is {self.low} to {self.high}: the first must be below the second")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"range is {self.low} to {self.high}, log: it must begin above 0 and have no step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"range is {self.low} to {self.high}, step {self.step}: the step must fit into it")

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna knows it."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSpace:
    """What a sweep varies: the first and the last stage's values, linear in between. None: as the recipe says."""

    randaugment_start: Range | None = None
    """RandAugment's magnitude in the first stage."""
    randaugment_end: Range | None = None
    """RandAugment's magnitude in the last stage."""
    mixup_start: Range | None = None
    """Mixup's alpha in the first stage."""
    mixup_end: Range | None = None
    """Mixup's alpha in the last stage."""
    dropout_start: Range | None = None
    """Dropout in the first stage."""
    dropout_end: Range | None = None
    """Dropout in the last stage."""
    image_size_start: Range | None = None
    """Image size of the first stage, in pixels."""
    image_size_end: Range | None = None
    """Image size of the last stage, in pixels."""
    lr: Range | None = None
    """Peak learning rate."""
    weight_decay: Range | None = None
    """L2 decay."""
    size_multiple: int = 16
    """Image sizes are rounded to multiples of so many pixels."""

    def __post_init__(self) -> None:
        if not self.ranges():
            raise ValueError("the search space is empty: give it at least one range")

    def ranges(self) -> dict[str, Range]:
        """Return the ranges that there are, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Range)}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the ranges as Optuna knows them."""
        return {name: found.distribution() for name, found in self.ranges().items()}

    def apply(self, config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
        """Return the recipe's config with a point of the space in it."""
        first, last = config.stages[0], config.stages[-1]
        spans = {
            field: (values.get(f"{name}_start", getattr(first, field)), values.get(f"{name}_end", getattr(last, field)))
            for name, field in RAMPED.items()
            if f"{name}_start" in values or f"{name}_end" in values
        }
        sizes = spans.pop("image_size", None)
        stages = ramped(config.stages, spans, count=None, size_multiple=1)
        if sizes is not None:  # all of them rounded: a ramp leaves its first and last size as they are given
            multiple = self.size_multiple
            stages = tuple(
                replace(stage, image_size=round(on_ramp(sizes, index, len(stages)) / multiple) * multiple)
                for index, stage in enumerate(stages)
            )
        changed = {name: values[name] for name in ("lr", "weight_decay") if name in values}
        return replace(config, stages=stages, optimizer=replace(config.optimizer, **changed))

    def point_of(self, config: TrainConfig) -> dict[str, float] | None:
        """Return the point that the recipe itself is, or None if it lies outside of the space."""
        point: dict[str, float] = {}
        for name, found in self.ranges().items():
            stem, _, end = name.rpartition("_")
            if stem in RAMPED:
                value = float(getattr(config.stages[0 if end == "start" else -1], RAMPED[stem]))
            else:
                value = getattr(config.optimizer, name)
            if not found.low <= value <= found.high:
                return None
            point[name] = value
        return point if self.apply(config, point) == config else None


def default_space(config: TrainConfig) -> SweepSpace:
    """Return a space for a recipe that has none of its own: where its regularization ends, from zero to double.

    A recipe for numbers that leaves RandAugment or Mixup out is not given it: it may change what the numbers say.
    """
    last = config.stages[-1]
    numbers = isinstance(config.task, RegressionConfig)
    magnitude, alpha = last.randaugment_magnitude, last.mixup_alpha
    return SweepSpace(
        randaugment_end=None if numbers and not magnitude else Range(0, max(10.0, 2 * magnitude)),
        mixup_end=None if numbers and not alpha else Range(0, max(0.4, 2 * alpha)),
        dropout_end=Range(0, min(0.8, max(0.4, 2 * last.dropout))),
    )

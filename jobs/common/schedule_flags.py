"""Flags that make a recipe's stages anew, before single stages are set: their ramp, batch size and length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from pipeline.config import TrainConfig
from pipeline.schedule.ramp import Span, ramped, rescaled
from pipeline.schedule.stages import MAX_EPOCHS, MAX_IMAGE_SIZE, RAMPED

MAX_STAGES = 100
"""Most stages that a ramp makes."""


def _span_of(given: Sequence[str]) -> Span | None:
    if len(given) != 2:
        raise ValueError(f"it takes two numbers, of the first and of the last stage, not {' '.join(given) or 'none'}")
    return float(given[0]), float(given[1])


_Span = Annotated[
    Span | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIRST LAST",
        instance_from_str=_span_of,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda span: ["None"] if span is None else [*map(str, span)],
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RampFlags:
    """A ramp over the stages, linear from the first to the last. What is left out stays as the recipe has it."""

    stages: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Number of stages, equally long. What no other flag gives is linear from the recipe's first stage to its last."""
    image_size: _Span = None
    """Image size of the first and of the last stage, in pixels."""
    randaugment: _Span = None
    """RandAugment's magnitude in the first and in the last stage."""
    mixup: _Span = None
    """Mixup's alpha in the first and in the last stage."""
    cutmix: _Span = None
    """CutMix's alpha in the first and in the last stage."""
    dropout: _Span = None
    """Dropout rate in the first and in the last stage."""
    stochastic_depth: _Span = None
    """Stochastic depth's drop probability in the first and in the last stage."""
    size_multiple: int = 1
    """Image sizes between the first and the last are rounded to a multiple of this, in pixels."""

    def __post_init__(self) -> None:
        for name, high in (("stages", MAX_STAGES), ("size_multiple", MAX_IMAGE_SIZE)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= high:
                raise ValueError(f"--ramp.{name.replace('_', '-')} is {value}: it must be from 1 to {high:,}")
        self._check_sizes()
        for name in RAMPED:
            limit = 1.0 if name in ("dropout", "stochastic_depth") else math.inf
            for value in getattr(self, name) or ():
                if not 0 <= value < limit:
                    below = " and below 1" if limit == 1 else ""
                    raise ValueError(f"--ramp.{name.replace('_', '-')} has {value:g}: it must be at least 0{below}")

    def _check_sizes(self) -> None:
        if self.image_size is None:
            return
        first, last = self.image_size
        if first % 1 or last % 1 or not 8 <= first <= MAX_IMAGE_SIZE or not 8 <= last <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"--ramp.image-size is {first:g} {last:g}: give whole numbers of pixels from 8 to {MAX_IMAGE_SIZE:,}"
            )
        if first > last:
            raise ValueError(
                f"--ramp.image-size is {first:g} {last:g}: sizes grow, so the first must not be above the last"
            )

    @property
    def spans(self) -> dict[str, Span]:
        """The given ranges, by the fields of a stage."""
        given = {field: getattr(self, name) for name, field in RAMPED.items()}
        return {field: span for field, span in given.items() if span is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleFlags:
    """The stages of the run. Flags of single stages, such as --stages.2.image-size 200, are applied after these."""

    epochs: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Epochs of all stages together: stages, warm-up and an exponential schedule's decay keep their proportions."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Global batch of every stage, in samples."""
    ramp: RampFlags = field(default_factory=RampFlags)

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0 < self.epochs <= MAX_EPOCHS:
            raise ValueError(f"--epochs is {self.epochs:g}: it must be above 0 and at most {MAX_EPOCHS:,}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}: it must be at least 1")


def scheduled(config: TrainConfig, flags: ScheduleFlags) -> TrainConfig:
    """Return a recipe's config with the stages that the flags make of its own.

    Raises:
        ValueError: a stage can't be so.
    """
    ramp = flags.ramp
    stages = ramped(config.stages, ramp.spans, count=ramp.stages, size_multiple=ramp.size_multiple)
    if flags.batch_size is not None:
        stages = tuple(replace(stage, batch_size=flags.batch_size) for stage in stages)
    config = replace(config, stages=stages)
    return config if flags.epochs is None else scaled(config, flags.epochs)


def scaled(config: TrainConfig, epochs: float) -> TrainConfig:
    """Return a config whose stages are so many epochs together, with the learning rate's course in proportion."""
    factor, rate = epochs / sum(stage.epochs for stage in config.stages), config.optimizer
    decay = rate.decay_epochs * (factor if rate.schedule == "exponential" else 1.0)
    optimizer = replace(rate, warmup_epochs=rate.warmup_epochs * factor, decay_epochs=decay)
    return replace(config, stages=rescaled(config.stages, epochs), optimizer=optimizer)

"""A recipe's stages made anew: another number of them, other (start, end) ranges, another length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.schedule.stages import RAMPED, TrainingStage, on_ramp

Stages = tuple[TrainingStage, ...]
Span = tuple[float, float]
"""The values of the first and the last stage."""


def ramped(
    stages: Sequence[TrainingStage], spans: Mapping[str, Span], *, count: int | None, size_multiple: int
) -> Stages:
    """Return a recipe's stages with ramps in them.

    Args:
        stages: the recipe's.
        spans: field -> its values in the first and the last stage; the stages between them are linear.
        count: number of stages, equally long and together as long as the recipe's, and linear in each of `RAMPED` from
            the recipe's first stage to its last where `spans` says nothing. None: the recipe's stages, in which only
            the fields of `spans` change.
        size_multiple: pixels of which image sizes between the first and the last stage are a multiple.

    Raises:
        ValueError: the recipe ends with FixRes, which is no end of a ramp; a value that a stage doesn't take.
    """
    made = tuple(stages) if count is None else _spread(stages, count, size_multiple)
    return tuple(
        replace(stage, **{name: _value(name, span, index, len(made), size_multiple) for name, span in spans.items()})
        for index, stage in enumerate(made)
    )


def _spread(stages: Sequence[TrainingStage], count: int, size_multiple: int) -> Stages:
    """Return so many stages; what doesn't ramp is that of the recipe's stage at the same share of the way."""
    if any(stage.fixres for stage in stages):
        raise ValueError("ramp.stages: the recipe has a stage with fixres, which no ramp goes through; leave it out")
    epochs = sum(stage.epochs for stage in stages) / count
    spans = {name: (getattr(stages[0], name), getattr(stages[-1], name)) for name in RAMPED.values()}
    known = {name: span for name, span in spans.items() if None not in span}
    return tuple(
        replace(
            stages[round(on_ramp((0, len(stages) - 1), index, count))],
            epochs=epochs,
            **{name: _value(name, span, index, count, size_multiple) for name, span in known.items()},
        )
        for index in range(count)
    )


def _value(name: str, span: Span, index: int, count: int, size_multiple: int) -> Any:
    value = on_ramp(span, index, count)
    if name != "image_size":
        return value
    if value in span:
        return int(value)
    # A multiple that is coarser than the range would lead out of it.
    return int(min(max(round(value / size_multiple) * size_multiple, min(span)), max(span)))


def rescaled(stages: Sequence[TrainingStage], epochs: float) -> Stages:
    """Return the stages in the same proportions, so many epochs together."""
    factor = epochs / sum(stage.epochs for stage in stages)
    return tuple(replace(stage, epochs=stage.epochs * factor) for stage in stages)

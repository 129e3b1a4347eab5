"""A schedule as a plot in a terminal: a line a curve, epochs to the right."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.schedule.curves import curves, edges
from pipeline.schedule.stages import TrainingStage

WIDTH = 72
"""Characters of a curve."""
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*%#"


def schedule_plot(stages: Sequence[TrainingStage], *, encoding: str = "utf-8") -> list[str]:
    """Return the lines of the plot: bars as high as a stage's value is, with the value where it changes.

    Args:
        stages: with their lengths.
        encoding: of the terminal; one without block characters gets others.
    """
    levels = _BLOCKS if encoding.lower().startswith("utf") else _ASCII
    at = edges(stages)
    starts = [round(epoch / at[-1] * WIDTH) for epoch in at]
    found = curves(stages)
    margin = max(map(len, found)) + 2
    lines = [f"{name:{margin}}{_curve(values, starts, levels)}" for name, values in found.items()]
    return [*lines, " " * margin + _axis(at, starts)]


def _curve(values: Sequence[float], starts: Sequence[int], levels: str) -> str:
    highest, line, shown = max(values), "", ""
    for value, start, stop in zip(values, starts, starts[1:], strict=False):
        bar = levels[max(value > 0, round(value / highest * (len(levels) - 1)))]
        text = f"{value:.3g}"
        label = text if text != shown and len(text) < stop - start else ""
        shown = text if label else shown
        line += label + bar * (stop - start - len(label))
    return line.rstrip()


def _axis(at: Sequence[float], starts: Sequence[int]) -> str:
    line = ""
    for epoch, start in zip(at, starts, strict=True):
        if start >= len(line) + (start > 0):
            line = line.ljust(start) + f"{epoch:.3g}"
    return f"{line} epochs"

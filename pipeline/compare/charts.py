"""A comparison's charts, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

from pipeline.compare.history import Clock, Figures, History, mean_curve

LABELS: dict[Clock, tuple[str, float]] = {
    "train_s": ("seconds of training (without evaluations and start-up)", 1.0),
    "cpu_s": ("CPU seconds of training", 1.0),
    "pixels": ("images x pixels, in millions", 1e6),
}
"""What each clock is called, and its unit."""


def curves(histories: Mapping[str, Sequence[History]], clock: Clock, target: float, metric: str) -> bytes:
    """Return the score over a clock: thin lines are seeds, thick ones their mean."""
    figure, axes = pyplot.subplots(figsize=(7.5, 4.4))
    label, unit = LABELS[clock]
    for index, (name, runs) in enumerate(histories.items()):
        colour = f"C{index % 10}"
        for run in runs if len(runs) > 1 else ():
            points = [(getattr(one, clock) / unit, one.score) for one in run.evaluations]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.7, alpha=0.4)
        x, y = mean_curve(runs, clock)
        axes.plot(x / unit, y, "o-", color=colour, linewidth=2, markersize=4, label=name)
    axes.axhline(target, color="0.5", linestyle=":", label=f"target {target:.4f}")
    axes.set_xlabel(label)
    axes.set_ylabel(metric)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return _png(figure)


def finals(found: Mapping[str, Figures], metric: str) -> bytes:
    """Return each seed's final score as a dot, with mean and standard deviation."""
    figure, axes = pyplot.subplots(figsize=(7.5, 0.9 + 0.42 * len(found)))
    for index, one in enumerate(found.values()):
        axes.plot(one.scores, [index] * len(one.scores), "o", color="0.6", markersize=5)
        axes.errorbar(one.score, index, xerr=one.score_std or 0, fmt="|", color=f"C{index % 10}", capsize=4, ms=14)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(f"final {metric}: seeds, mean and standard deviation")
    axes.grid(axis="x", alpha=0.25)
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return out.getvalue()

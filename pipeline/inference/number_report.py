"""What the report of a regression shows of each target: its scores, truth against prediction, errors and the worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.inference.mistakes import NumberRecord
from pipeline.inference.report_parts import MOST_PICTURES, WORST, Shown
from pipeline.training.class_scores import ClassRow

WORST_OF_ONE = 12
"""Pictures at most of each target's worst errors, where there are several targets."""
MOST_POINTS, LEAST_POINTS = 6000, 50
"""Points of all scatter plots together, and of each at least; of more images, some evenly spaced ones are drawn."""
SCORES = ("images", "SD", "MAE", "MAE / SD", "RMSE", "R²", "Pearson", "mean error")
"""What is said of each target in numbers."""
_ROOM = 1.5
"""A histogram shows errors up to so many times the size that 99 % of them keep to; its outer bars have the rest."""

Tick = tuple[float, str]
"""Place in the chart, and what is written there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scatter:
    """Prediction over truth, in the coordinates of a square of 100 with its origin at the top left."""

    points: list[tuple[float, float]]
    worst: list[tuple[float, float, str]]
    """x, y and what is said of the images whose pictures are shown"""
    ticks: list[Tick]
    """Of both axes: places from the left, or from the bottom."""

    @property
    def below(self) -> list[Tick]:
        """Those of which there is room for the texts side by side."""
        return _with_room(self.ticks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How many images have which error, in the same coordinates; an error of 0 is in the middle.

    Errors beyond the chart are in its outer bars.
    """

    bars: list[tuple[float, float, str]]
    """left, height and what is said of the bar"""
    width: float
    """Of a bar."""
    ticks: list[Tick]
    most: int
    """Images of the highest bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is shown of one target."""

    name: str
    scores: list[str]
    """In the order of `SCORES`."""
    sentence: str
    scatter: Scatter
    histogram: Histogram
    worst: list[Shown]


def number_text(value: float, scale: float, digits: int = 3) -> str:
    """Return a number with as many decimals as `scale` has for that many significant digits."""
    if not (math.isfinite(value) and scale > 0):
        return f"{value:.4g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(scale)))
    if decimals > 8 or abs(value) >= 1e10:
        return f"{value:.4g}"
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: -0.0 is 0.0


def targets_of(
    record: NumberRecord, rows: Sequence[ClassRow], deviations: Sequence[float], name_of: Callable[[int], str]
) -> list[Target]:
    """Return what is shown of each target.

    Args:
        record: all images' numbers.
        rows: the targets' scores, in the order of the outputs.
        deviations: each target's standard deviation over the training data.
        name_of: what a sample is called.
    """
    most = WORST if len(rows) == 1 else min(WORST_OF_ONE, (MOST_PICTURES - WORST) // len(rows))
    drawn = max(LEAST_POINTS, MOST_POINTS // len(rows))
    found = []
    for index, (row, deviation) in enumerate(zip(rows, deviations, strict=True)):
        truth, predicted = record.truth[:, index], record.predicted[:, index]
        order = _worst_first(predicted - truth)[:most]
        worst = [_shown(record, int(place), index, "truth", deviation, name_of) for place in order]
        said = [f"{one.name}: {one.truth}, predicted {one.predicted}" for one in worst]
        found.append(
            Target(
                name=row.name,
                scores=_scores(row, truth, predicted, deviation),
                sentence=_sentence(predicted - truth, deviation),
                scatter=_scatter(truth, predicted, order, said, drawn),
                histogram=_histogram(predicted - truth, deviation),
                worst=worst,
            )
        )
    return found


def worst_of_all(
    record: NumberRecord, names: Sequence[str], deviations: Sequence[float], name_of: Callable[[int], str]
) -> list[Shown]:
    """Return the largest errors of all targets, in their standard deviations; an image may be there several times."""
    order = _worst_first(((record.predicted - record.truth) / np.array(deviations)).ravel())[:WORST]
    places = [divmod(int(one), len(names)) for one in order]
    return [_shown(record, row, index, names[index], deviations[index], name_of) for row, index in places]


def _worst_first(errors: np.ndarray) -> np.ndarray:
    """Return the places of the errors that aren't 0, largest first."""
    sizes = np.nan_to_num(np.abs(errors), nan=np.inf)
    order = np.argsort(-sizes, kind="stable")
    return np.asarray(order[sizes[order] > 0])


def _shown(
    record: NumberRecord, row: int, index: int, word: str, deviation: float, name_of: Callable[[int], str]
) -> Shown:
    number = int(record.numbers[row])
    truth, predicted = float(record.truth[row, index]), float(record.predicted[row, index])
    error = predicted - truth
    return Shown(
        number,
        f"{word} {number_text(truth, deviation)}",
        number_text(predicted, deviation),
        f"{'+' if error > 0 else ''}{number_text(error, deviation)} ({abs(error) / deviation:.2f} SD)",
        name_of(number),
    )


def _scores(row: ClassRow, truth: np.ndarray, predicted: np.ndarray, deviation: float) -> list[str]:
    assert row.mae is not None
    assert row.rmse is not None
    assert row.r2 is not None
    correlation = "-"
    if truth.std() > 0 and predicted.std() > 0:
        correlation = f"{np.corrcoef(truth, predicted)[0, 1]:.4f}"
    return [
        f"{row.count:,}",
        number_text(deviation, deviation),
        number_text(row.mae, deviation, 4),
        f"{row.mae / deviation:.3f}",
        number_text(row.rmse, deviation, 4),
        f"{row.r2:.4f}",
        correlation,
        number_text(float((predicted - truth).mean()), deviation, 4),
    ]


def _sentence(errors: np.ndarray, deviation: float) -> str:
    finite = errors[np.isfinite(errors)]
    lost = f"Not finite: {len(errors) - len(finite):,} predictions. " if len(finite) < len(errors) else ""
    if not len(finite):
        return lost.rstrip()
    half, nine = (number_text(float(np.quantile(np.abs(finite), share)), deviation) for share in (0.5, 0.9))
    mean = float(finite.mean())
    return (
        f"{lost}Half of the images have an error of at most {half}, nine of ten of at most {nine}. On average the "
        f"prediction is {number_text(abs(mean), deviation)} too {'high' if mean > 0 else 'low'}."
    )


def _scatter(truth: np.ndarray, predicted: np.ndarray, worst: np.ndarray, said: Sequence[str], most: int) -> Scatter:
    finite = np.isfinite(predicted)
    values = np.concatenate([truth, predicted[finite]])
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or abs(low) or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    count = len(truth)
    some = np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
    return Scatter(
        points=[(place(truth[one]), 100 - place(predicted[one])) for one in some if finite[one]],
        worst=[
            (place(truth[one]), 100 - place(predicted[one]), text)
            for one, text in zip(worst, said, strict=True)
            if finite[one]
        ],
        ticks=_ticks(low, high),
    )


def _histogram(errors: np.ndarray, deviation: float) -> Histogram:
    errors = errors[np.isfinite(errors)]
    sizes = np.abs(errors)
    most = float(sizes.max(initial=0)) or deviation
    usual = _ROOM * float(np.quantile(sizes, 0.99)) if len(sizes) else 0.0
    cut = 0 < usual < most  # else a few wild errors would press all others into one bar
    most = usual if cut else most
    bars = 2 * min(20, max(4, math.isqrt(len(errors))))
    counts, edges = np.histogram(np.clip(errors, -most, most), bars, (-most, most))
    highest = max(1, int(counts.max()))
    texts = [number_text(float(edge), 2 * most / bars, 2) for edge in edges]
    if cut:
        texts[0], texts[-1] = "the lowest", "the highest"
    return Histogram(
        bars=[
            (100 * index / bars, 100 * count / highest, f"{count:,} images: {texts[index]} to {texts[index + 1]}")
            for index, count in enumerate(counts.tolist())
            if count
        ],
        width=100 / bars,
        ticks=_with_room(_ticks(-most, most)),
        most=highest,
    )


def _ticks(low: float, high: float) -> list[Tick]:
    """Return round numbers from low to high, at most six, with their places from 0 to 100."""
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= least)
    values = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(100 * (value - low) / (high - low), number_text(value, step * 1.001, 1)) for value in values]


def _with_room(ticks: list[Tick]) -> list[Tick]:
    """Return every tick, or every second, third ... one, so that their texts don't touch each other."""
    width = 3 + 2.4 * max((len(text) for _, text in ticks), default=0)
    return ticks[:: math.ceil(width * max(1, len(ticks) - 1) / max(1, ticks[-1][0] - ticks[0][0]))] if ticks else []

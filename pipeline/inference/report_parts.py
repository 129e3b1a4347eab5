"""The parts of an evaluation's report: which pictures it shows where, and the calibration curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.inference.mistakes import BINS, LabelRecord, MaskRecord

WORST, PER_CELL, PER_CLASS = 24, 8, 8
"""Pictures at most: of the worst mistakes, of a pair of classes, of a class."""
MOST_PICTURES = 700
"""Different pictures on a page."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture and what is said of it."""

    number: int
    """of the sample; the page has its picture once"""
    truth: str
    predicted: str
    """class names; empty in segmentation; multi-label: the classes of the image, and `missed` or `not` a class; in
    regression numbers"""
    score: str
    """confidence, IoU or error"""
    name: str
    """file or key"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The samples that a page shows."""

    worst: list[Shown] = field(default_factory=list)
    pairs: dict[tuple[int, int], list[Shown]] = field(default_factory=dict)
    """(truth, prediction) -> pictures"""
    by_class: dict[int, tuple[list[Shown], list[Shown]]] = field(default_factory=dict)
    """class -> what was missed of it, and what was taken for it"""
    left_out: int = 0
    """Pairs of classes with confusions whose pictures would have been too many."""

    @property
    def numbers(self) -> list[int]:
        """The numbers of all samples that are shown."""
        lists = [self.worst, *self.pairs.values(), *(part for parts in self.by_class.values() for part in parts)]
        return sorted({one.number for part in lists for one in part})


class Budget:
    """Says which pictures still find a place."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def take(self, numbers: Iterable[int]) -> bool:
        """Count these too, if all of them find one."""
        more = self._used | set(numbers)
        if len(more) > MOST_PICTURES:
            return False
        self._used = more
        return True


def label_gallery(record: LabelRecord, classes: Sequence[str], name_of: Callable[[int], str]) -> Gallery:
    """Choose pictures of a classifier's mistakes: those in which it was surest; of right ones the least sure."""
    number, label, predicted, confidence = record.rows
    order = np.argsort(-confidence, kind="stable")
    wrong = order[label[order] != predicted[order]]
    budget = Budget()

    def shown(rows: np.ndarray) -> list[Shown]:
        return [
            Shown(int(number[i]), classes[int(label[i])], classes[int(predicted[i])], f"{100 * confidence[i]:.0f} %",
                  name_of(int(number[i]))) for i in rows
        ]  # fmt: skip

    def fits(rows: np.ndarray) -> bool:
        return budget.take(number[rows].astype(int).tolist())

    gallery, left_out = Gallery(worst=shown(wrong[:WORST]) if fits(wrong[:WORST]) else []), 0
    for index in range(len(classes)):
        parts = wrong[label[wrong] == index][:PER_CLASS], wrong[predicted[wrong] == index][:PER_CLASS]
        if len(parts[0]) + len(parts[1]) and fits(np.concatenate(parts)):
            gallery.by_class[index] = shown(parts[0]), shown(parts[1])
    pairs, counts = np.unique(np.stack([label[wrong], predicted[wrong]]), axis=1, return_counts=True)
    for truth, guess in pairs[:, np.argsort(-counts, kind="stable")].T.astype(int).tolist():
        rows = wrong[(label[wrong] == truth) & (predicted[wrong] == guess)][:PER_CELL]
        if fits(rows):
            gallery.pairs[truth, guess] = shown(rows)
        else:
            left_out += 1
    right = order[label[order] == predicted[order]][::-1]
    for index in range(len(classes)):
        rows = right[label[right] == index][:PER_CELL]
        if len(rows) and fits(rows):
            gallery.pairs[index, index] = shown(rows)
    return Gallery(worst=gallery.worst, pairs=gallery.pairs, by_class=gallery.by_class, left_out=left_out)


def mask_gallery(record: MaskRecord, classes: Sequence[str], name_of: Callable[[int], str]) -> Gallery:
    """Choose pictures of a segmentation's mistakes: the images with the lowest IoU, overall and of each class."""
    numbers, ious = record.numbers, record.ious
    occurs = ~np.isnan(ious)
    means = np.where(occurs, ious, 0).sum(1) / np.maximum(occurs.sum(1), 1)
    means[~occurs.any(1)] = np.inf  # nothing but ignored pixels
    place, budget = {int(number): row for row, number in enumerate(numbers)}, Budget()

    def shown(found: Iterable[int], values: Callable[[int], str]) -> list[Shown]:
        return [Shown(int(one), "", "", values(int(one)), name_of(int(one))) for one in found]

    def of_class(index: int) -> list[Shown]:
        column = np.where(occurs[:, index], ious[:, index], np.inf)
        rows = [row for row in np.argsort(column, kind="stable")[:PER_CLASS] if np.isfinite(column[row])]
        if not budget.take(numbers[rows].tolist()):
            return []
        return shown(numbers[rows], lambda one: f"IoU {ious[place[one], index]:.2f}")

    worst = [row for row in np.argsort(means, kind="stable")[:WORST] if np.isfinite(means[row])]
    budget.take(numbers[worst].tolist())
    by_class = {index: (rows, list[Shown]()) for index in range(len(classes)) if (rows := of_class(index))}
    pairs, left_out = {}, 0
    totals = record.pair_pixels[..., 0]
    for flat in totals.flatten().argsort(descending=True).tolist():
        truth, guess = divmod(flat, max(1, len(totals)))
        pixels = record.pair_pixels[truth, guess].tolist()
        found = [n for n, count in zip(record.pair_images[truth, guess].tolist(), pixels, strict=True) if count]
        count_of = dict(zip(found, pixels, strict=False))
        if found and budget.take(found):
            pairs[truth, guess] = shown(found, lambda one, of=count_of: f"{of[one]:,} pixels")  # type: ignore[misc]
        elif found and truth != guess:
            left_out += 1
    return Gallery(
        worst=shown(numbers[worst], lambda one: f"IoU {means[place[one]]:.2f}"),
        pairs=pairs,
        by_class=by_class,
        left_out=left_out,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The calibration curve, in the coordinates of a square of 100 with its origin at the top left."""

    error: float
    """Expected calibration error."""
    points: list[tuple[float, float, int]]
    """x, y of each bin that has predictions, and how many."""
    bars: list[tuple[float, float]]
    """left, height (0 to 100) of each bin's share of the predictions."""
    sentence: str

    @property
    def width(self) -> float:
        """Width of a bar."""
        return 100 / BINS


def calibration(bins: np.ndarray, things: str) -> Calibration:
    """Return the curve of accuracy over confidence from bins [3, BINS] of predictions."""
    count, right, confidence = bins
    used = count > 0
    total = max(count.sum(), 1)
    x, y = confidence[used] / count[used], right[used] / count[used]
    sure = slice(-(BINS // 5), None)
    sentence = f"Mean confidence {confidence.sum() / total:.1%}, accuracy {right.sum() / total:.1%}."
    if count[sure].sum():
        sentence += (
            f" Of the {count[sure].sum() / total:.0%} of the {things} with a confidence of 80 % or more, "
            f"{right[sure].sum() / count[sure].sum():.1%} are right."
        )
    return Calibration(
        error=float(np.abs(right - confidence).sum() / total),
        points=[(100 * a, 100 - 100 * b, int(n)) for a, b, n in zip(x, y, count[used], strict=True)],
        bars=[(100 * index / BINS, 100 * share) for index, share in enumerate(count / max(count.max(), 1))],
        sentence=sentence,
    )

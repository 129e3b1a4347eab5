"""Which pictures the report of a multi-label evaluation shows: the labels that the model is farthest from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.inference.mistakes import MultilabelRecord
from pipeline.inference.report_parts import PER_CLASS, WORST, Budget, Gallery, Shown
from pipeline.training.class_scores import ClassRow


def multilabel_gallery(record: MultilabelRecord, rows: Sequence[ClassRow], name_of: Callable[[int], str]) -> Gallery:
    """Choose pictures of classes that were missed, or predicted and aren't there: those in which the model was surest.

    `rows` are the classes in the order of the outputs, with their thresholds.
    """
    probabilities, truth = record.probabilities, record.truth
    predicted = probabilities >= np.array([row.threshold for row in rows])
    distance = np.where(predicted == truth, -1.0, np.abs(probabilities - truth))
    budget = Budget()

    def shown(places: np.ndarray) -> list[Shown]:
        found = [_shown(record, int(place) // len(rows), int(place) % len(rows), rows, name_of) for place in places]
        return found if budget.take(one.number for one in found) else []

    def worst(mistakes: np.ndarray, most: int) -> np.ndarray:
        order = np.argsort(-mistakes.ravel(), kind="stable")[:most]
        return order[mistakes.ravel()[order] >= 0]

    def of_class(index: int, there: bool) -> np.ndarray:
        mistakes = np.full_like(distance, -1.0)
        mistakes[:, index] = np.where(truth[:, index] == there, distance[:, index], -1.0)
        return worst(mistakes, PER_CLASS)

    gallery = Gallery(worst=shown(worst(distance, WORST)))
    for index in range(len(rows)):
        parts = shown(of_class(index, True)), shown(of_class(index, False))
        if parts[0] or parts[1]:
            gallery.by_class[index] = parts
    return gallery


def _shown(
    record: MultilabelRecord, row: int, index: int, classes: Sequence[ClassRow], name_of: Callable[[int], str]
) -> Shown:
    """Return what is said of a class in an image that is predicted wrongly."""
    there = ", ".join(one.name for one, is_there in zip(classes, record.truth[row], strict=True) if is_there)
    what = "missed" if record.truth[row, index] else "not"
    number = int(record.numbers[row])
    score = f"{100 * record.probabilities[row, index]:.0f} %"
    return Shown(number, there or "none", f"{what} {classes[index].name}", score, name_of(number))

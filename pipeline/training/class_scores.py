"""Scores of each class, and their means over the classes, from counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the driver and `status` read rows, and need no PyTorch for it
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """One class; None where it is undefined: the class never occurs, or is never predicted."""

    name: str
    count: int
    """Images (in segmentation: pixels) of the class."""
    recall: float | None
    """Share of them that are predicted as the class."""
    precision: float | None
    """Share of those predicted as the class that are of it."""
    f1: float | None
    iou: float | None
    """Intersection over union: right ones over all that are of the class or predicted as it."""
    average_precision: float | None = None
    """Multi-label only."""
    threshold: float | None = None
    """Multi-label only: the probability from which on an image is predicted as the class."""
    mae: float | None = None
    """Regression only, as the next two: mean absolute error, in the target's unit."""
    rmse: float | None = None
    """Root of the mean squared error."""
    r2: float | None = None
    """Coefficient of determination."""


def class_rows(confusion: Tensor, names: Sequence[str]) -> tuple[ClassRow, ...]:
    """Return a row for each class from counts [truth, prediction]."""
    right, of_class, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)

    def share(part: Tensor, whole: Tensor) -> list[float | None]:
        return [a / b if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]

    columns = zip(
        names,
        of_class.tolist(),
        share(right, of_class),
        share(right, predicted),
        share(2 * right, of_class + predicted),
        share(right, of_class + predicted - right),
        strict=True,
    )
    return tuple(
        ClassRow(name=name, count=count, recall=recall, precision=precision, f1=f1, iou=iou)
        for name, count, recall, precision, f1, iou in columns
    )


def balanced_accuracy(right: Tensor, of_class: Tensor) -> Tensor:
    """Return the mean recall (macro recall) of the classes that occur, from int64 counts [K]."""
    occurs = of_class > 0
    return (right[occurs].double() / of_class[occurs]).mean()


def macro_f1(right: Tensor, of_class: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean F1 of the classes that occur or are predicted, from int64 counts [K]."""
    either = of_class + predicted
    seen = either > 0
    return (2 * right[seen].double() / either[seen]).mean()


def calibration_error(bins: Tensor) -> Tensor:
    """Return the expected calibration error: |accuracy - mean confidence| of each bin, weighted by its samples.

    `bins` is float64 [3, bins]: samples, right ones, and the sum of the confidences in the predictions.
    """
    samples, right, confidence = bins
    return (right - confidence).abs().sum() / samples.sum()

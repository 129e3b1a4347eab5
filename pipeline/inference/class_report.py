"""The result of an evaluation in numbers: overall, and per class from the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.config import DataConfig
from datasets.shards.manifest import DatasetManifest
from pipeline.inference.trained_model import SavedModel
from pipeline.training.evaluation import collect


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """An evaluation's outcome."""

    metrics: dict[str, float]
    """As training logs them under `val/`."""
    classes: tuple[ClassRow, ...]
    confusion: Tensor
    """int64 [truth, prediction]: images, in segmentation pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metrics": self.metrics,
            "classes": [asdict(row) for row in self.classes],
            "confusion": self.confusion.tolist(),
        }


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


def evaluate_saved(
    saved: SavedModel,
    data: DataConfig,
    *,
    device: torch.device,
    batch_size: int = 64,
    manifest: DatasetManifest | None = None,
) -> Report:
    """Run a saved model over every sample of `data.val`, each once; `manifest` is its, where it was read before.

    Raises:
        DataError: the data can't be read.
    """
    task = saved.task
    metrics = task.metrics()
    metrics.add_metrics({"confusion": task.confusion()})
    collect(
        saved.model.to(device),
        task,
        data,
        saved.trainer_config(eval_batch_size=batch_size),
        metrics,
        image_size=saved.preprocessing.image_size,
        device=device,
        manifest=manifest,
    )
    values = metrics.compute()
    confusion = values.pop("confusion").cpu()
    return Report(
        metrics={name: float(value) for name, value in values.items()},
        classes=class_rows(confusion, task.classes),
        confusion=confusion,
    )

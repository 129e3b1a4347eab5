"""The result of an evaluation in numbers: overall, and per class from the confusion matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.config import DataConfig
from datasets.shards.manifest import DatasetManifest
from pipeline.inference.trained_model import SavedModel
from pipeline.training.class_scores import ClassRow, class_rows
from pipeline.training.evaluation import collect


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

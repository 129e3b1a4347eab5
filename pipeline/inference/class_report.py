"""The result of an evaluation in numbers: overall, and per class from the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.inference.evaluation_data import EvaluationData
from pipeline.inference.trained_model import SavedModel
from pipeline.training.class_scores import ClassRow, class_rows
from pipeline.training.evaluation import predicted


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


@torch.inference_mode()
def evaluate_saved(
    saved: SavedModel,
    data: EvaluationData,
    *,
    device: torch.device,
    batch_size: int = 64,
    observe: Callable[[Batch, Tensor], None] = lambda batch, logits: None,
) -> Report:
    """Run a saved model over every sample, each once; `observe` is given each batch with its logits.

    Raises:
        DataError: the data can't be read.
    """
    task = saved.task
    metrics = task.metrics()
    metrics.add_metrics({"confusion": task.confusion()})
    metrics.to(device)
    batches = data.batches(image_size=saved.preprocessing.image_size, batch_size=batch_size)
    config = saved.trainer_config(eval_batch_size=batch_size)
    for batch, logits in predicted(saved.model.to(device), batches, data.config, config, device=device):
        task.update(metrics, logits, batch)
        observe(batch, logits)
    values = metrics.compute()
    confusion = values.pop("confusion").cpu()
    return Report(
        metrics={name: float(value) for name, value in values.items()},
        classes=class_rows(confusion, task.classes),
        confusion=confusion,
    )

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
from pipeline.training.class_scores import ClassRow
from pipeline.training.evaluation import predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """An evaluation's outcome."""

    metrics: dict[str, float]
    """As training logs them under `val/`."""
    classes: tuple[ClassRow, ...]
    confusion: Tensor | None
    """int64 [truth, prediction]: images, in segmentation pixels. None: the classes don't exclude each other."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        values = {"metrics": self.metrics, "classes": [_values(row) for row in self.classes]}
        return values if self.confusion is None else values | {"confusion": self.confusion.tolist()}


def _values(row: ClassRow) -> dict[str, Any]:
    """Return a row's JSON values, without what only another task has."""
    values = asdict(row)
    left_out = {name for name in ("threshold", "mae", "rmse", "r2") if values[name] is None}
    if "threshold" in left_out:  # with one, it may be None: the class never occurs
        left_out.add("average_precision")
    return {name: value for name, value in values.items() if name not in left_out}


@torch.inference_mode()
def evaluate_saved(
    saved: SavedModel,
    data: EvaluationData,
    *,
    device: torch.device,
    batch_size: int = 64,
    observe: Callable[[Batch, Tensor], None],
) -> Report:
    """Run a saved model over every sample, each once; `observe` is given each batch with its logits.

    Raises:
        DataError: the data can't be read.
    """
    task = saved.task
    metrics = task.metrics(by_class=True).to(device)
    batches = data.batches(image_size=saved.preprocessing.image_size, batch_size=batch_size)
    config = saved.trainer_config(eval_batch_size=batch_size)
    for batch, logits in predicted(saved.model.to(device), batches, data.config, config, device=device):
        task.update(metrics, logits, batch)
        observe(batch, logits)
    values = metrics.compute()
    by_class = values.pop("by_class").cpu()
    return Report(
        metrics={name: float(value) for name, value in values.items()},
        classes=task.class_rows(by_class),
        confusion=by_class if task.exclusive else None,
    )

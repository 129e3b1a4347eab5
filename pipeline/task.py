"""Tasks: what a batch means. The loop knows *when*, a task knows *what*: targets, loss, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.loader import Batch
from pipeline.config import ClassificationConfig

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class Task(Protocol):
    """What the trainer asks of a task."""

    num_outputs: int
    """Channels of the model's logits."""

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return soft float targets, batch first, that Mixup may blend."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return `{"loss": scalar, ...}`; further scalars are logged under their names."""
        ...

    def metrics(self) -> MetricCollection:
        """Return fresh evaluation metrics; their states are summed over workers, so they are exact."""
        ...

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add one evaluated batch to the metrics."""
        ...


class ClassificationTask:
    """Softmax cross-entropy with label smoothing; top-1, top-5 and loss as metrics."""

    def __init__(self, config: ClassificationConfig, *, num_classes: int) -> None:
        self.config = config
        self.num_outputs = num_classes

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return smoothed one-hot targets, float [B, K]."""
        smoothing = self.config.label_smoothing
        one_hot = F.one_hot(batch.labels.to(device, non_blocking=True), self.num_outputs).float()
        return one_hot * (1 - smoothing) + smoothing / self.num_outputs

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean cross-entropy of float32 logits [B, K] against soft targets [B, K]."""
        return {"loss": F.cross_entropy(logits.float(), targets)}

    def metrics(self) -> MetricCollection:
        """Return accuracy (top-1), top5_accuracy where there are more than 5 classes, and the unsmoothed loss."""
        from torchmetrics import MeanMetric, MetricCollection  # takes seconds, which a worker's start should not
        from torchmetrics.classification import MulticlassAccuracy

        metrics: dict[str, object] = {
            "accuracy": MulticlassAccuracy(self.num_outputs, average="micro"),
            # Sums of float32 losses are kept in float64, where they don't depend on the order of the workers.
            "loss": MeanMetric(nan_strategy="disable").set_dtype(torch.float64),
        }
        if self.num_outputs > 5:
            metrics["top5_accuracy"] = MulticlassAccuracy(self.num_outputs, average="micro", top_k=5)
        return MetricCollection(metrics, compute_groups=False)

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add logits [B, K] and the batch's labels [B]."""
        labels = batch.labels.to(logits.device)
        for name in metrics:
            if name == "loss":
                metrics[name].update(F.cross_entropy(logits.float(), labels, reduction="none").double())
            else:
                metrics[name].update(logits.float(), labels)


def build_task(config: ClassificationConfig, classes: tuple[str, ...]) -> Task:
    """Make the task that a config names, for these class names."""
    return ClassificationTask(config, num_classes=len(classes))

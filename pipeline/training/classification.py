"""The classification task: one class an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.task_config import ClassificationConfig
from pipeline.training.class_scores import ClassRow, class_rows
from pipeline.training.device import constant
from pipeline.training.loss_metric import loss_alone, mean_loss, weight_of_each

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class ClassificationTask:
    """Softmax cross-entropy with label smoothing; `ClassificationScores` and the loss as metrics."""

    exclusive = True

    def __init__(self, config: ClassificationConfig, classes: tuple[str, ...]) -> None:
        self.config, self.classes, self.num_outputs = config, classes, len(classes)
        self._weights = weight_of_each(config.class_weights, classes)

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return smoothed one-hot targets, times the weights of their classes, float [B, K].

        The weights are in the targets, since both losses are linear in them: two images that are blended keep theirs,
        and a label's smoothing has the weight of the label, not those of the classes that it is spread over.
        """
        smoothing, labels = self.config.label_smoothing, batch.labels.to(device, non_blocking=True)
        targets = F.one_hot(labels, self.num_outputs).float() * (1 - smoothing) + smoothing / self.num_outputs
        return targets if self._weights is None else targets * constant(self._weights, device)[labels, None]

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean cross-entropy, or focal loss, of float32 logits [B, K] against soft targets [B, K]."""
        if self.config.focal_gamma:
            return {"loss": focal_loss(logits.float(), targets, self.config.focal_gamma)}
        return {"loss": F.cross_entropy(logits.float(), targets)}

    def metrics(self, *, by_class: bool = False) -> MetricCollection:
        """Return the scores of `ClassificationScores`, and the loss without smoothing; by class the confusion matrix,
        int64 [truth, prediction]: images.
        """
        from torchmetrics import MetricCollection  # takes seconds, which a worker's start should not

        from pipeline.training.metrics import ClassificationScores, Confusion

        metrics: dict[str, Any] = {"scores": ClassificationScores(self.num_outputs), "loss": mean_loss()}
        if by_class:
            metrics["by_class"] = Confusion(self.num_outputs)
        return MetricCollection(metrics, compute_groups=False)

    def loss_metric(self) -> MetricCollection:
        """Return the cross-entropy alone."""
        return loss_alone()

    def class_rows(self, by_class: Tensor) -> tuple[ClassRow, ...]:
        """Return a row for each class from the confusion matrix."""
        return class_rows(by_class, self.classes)

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add logits [B, K] and the batch's labels [B]."""
        labels, logits = batch.labels.to(logits.device, non_blocking=True), logits.float()
        for name in metrics:
            if name == "loss":
                metrics[name].update(F.cross_entropy(logits, labels, reduction="none"))
            elif name == "by_class":
                metrics[name].update(logits.argmax(1), labels)
            else:
                metrics[name].update(logits, labels)

    def picture(self, batch: Batch, logits: Tensor) -> bytes:
        """Return images with their label and, where it differs, what was predicted."""
        from pipeline.training.figures import labelled_images

        predicted = logits.argmax(1).tolist()
        return labelled_images(batch.images, batch.labels.tolist(), predicted, self.classes)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return the focal loss (arXiv 1708.02002) of logits [B, K], averaged over the batch.

    Soft targets [B, K], as smoothing and Mixup make them, weigh the terms of their classes.
    """
    log_likelihood = F.log_softmax(logits, 1)
    missed = (1 - log_likelihood.exp()).clamp_min(1e-7)  # at 0 the gradient of a power below 1 is infinite
    return -(targets * missed**gamma * log_likelihood).sum(1).mean()

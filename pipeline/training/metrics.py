"""What an evaluation of a classifier measures, in one metric. Importing it takes seconds (torchmetrics)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.class_scores import balanced_accuracy, calibration_error, macro_f1

CALIBRATION_BINS = 15
"""Bins of equal width of the confidence; the value 1 itself has one more, as in torchmetrics."""


class ClassificationScores(Metric):
    """Accuracy, balanced accuracy, macro F1, expected calibration error and, with over 5 classes, top-5 accuracy.

    One pass over the logits, and states of fixed size that are summed over the workers. torchmetrics' own calibration
    error keeps every sample, and its others would each go through the logits again.
    """

    full_state_update = False
    counts: Tensor
    bins: Tensor
    top5: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Of each class: predicted rightly, in the truth, predicted.
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        # Of each bin: samples, right ones, sum of confidence; float64, where sums don't depend on the workers' order.
        bins = torch.zeros(3, CALIBRATION_BINS + 1, dtype=torch.float64)
        self.add_state("bins", bins, dist_reduce_fx="sum")
        self.add_state("top5", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add float32 logits [B, K] and labels [B]."""
        predicted = logits.argmax(1)
        right = predicted == labels
        classes = (labels[right], labels, predicted)
        self.counts += torch.stack([torch.bincount(which, minlength=self.num_classes) for which in classes])
        self._add_confidence(logits.softmax(1).amax(1), right)
        if self.num_classes > 5:
            self.top5 += (logits.topk(5).indices == labels[:, None]).sum()

    def _add_confidence(self, confidence: Tensor, right: Tensor) -> None:
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, device=confidence.device)
        index = torch.bucketize(confidence, edges, right=True).sub_(1).clamp_(0, CALIBRATION_BINS)
        values = torch.stack((torch.ones_like(confidence), right.to(confidence.dtype), confidence)).double()
        self.bins.index_add_(1, index, values)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name."""
        right, of_class, predicted = self.counts
        total = of_class.sum()
        scores = {
            "accuracy": right.sum().float() / total.float(),
            "balanced_accuracy": balanced_accuracy(right, of_class),
            "macro_f1": macro_f1(right, of_class, predicted),
            "calibration_error": calibration_error(self.bins),
        }
        return scores | ({"top5_accuracy": self.top5.float() / total.float()} if self.num_classes > 5 else {})

"""What an evaluation measures of classes, and its loss. Importing it takes seconds (torchmetrics).

Nothing here waits for the device: counts and sums stay there until all batches are in. `torch.bincount` waits, and so
do torchmetrics' own metrics, which look at the labels first or leave pixels out by an index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.class_scores import balanced_accuracy, calibration_error, macro_f1

CALIBRATION_BINS = 15
"""Bins of equal width of the confidence; the value 1 itself has one more, as in torchmetrics."""


class MeanLoss(Metric):
    """The mean of losses, float64: such sums don't depend on the order of the workers."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, known: Tensor | None = None) -> None:
        """Add losses of any shape; with `known`, bool of that shape, no others."""
        if known is not None:
            losses = losses * known
        self.total += losses.double().sum()
        self.count += losses.numel() if known is None else known.sum()

    def compute(self) -> Tensor:
        """Return the mean; 0 of nothing."""
        return self.total / self.count.clamp_min(1)


class Confusion(Metric):
    """The confusion matrix, int64 [truth, prediction]."""

    full_state_update = False
    matrix: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor, known: Tensor | None = None) -> None:
        """Add int64 predictions and labels of any shape; with `known`, bool of that shape, no others."""
        counts = torch.ones_like(truth) if known is None else known.long()
        cells = truth * self.num_classes + predicted
        if known is not None:
            cells = cells * counts  # a label that stands for no class has no row
        self.matrix.view(-1).index_add_(0, cells.flatten(), counts.flatten())

    def compute(self) -> dict[str, Tensor]:
        """Return the matrix as `by_class`."""
        return {"by_class": self.matrix}


class PixelScores(Confusion):
    """Mean IoU over the classes that occur or are predicted, IoU of each (0 where there is neither), pixel accuracy."""

    def __init__(self, classes: Sequence[str], *, by_class: bool, ignored: int) -> None:
        """Make an empty metric; with `by_class` the confusion matrix is among the scores.

        `ignored` is the value of masks that is no class. Where it is a class's number, that one is not in the mean.
        """
        super().__init__(len(classes))
        self.classes, self.by_class = tuple(classes), by_class
        self.meant = [number for number in range(len(classes)) if number != ignored]

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name."""
        counts = self.matrix.double()
        right, either = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        ious = right / either.clamp_min(1)
        scores = {
            "miou": ious[self.meant].sum() / (either[self.meant] > 0).sum().clamp_min(1),
            "pixel_accuracy": right.sum() / counts.sum().clamp_min(1),
            **{f"iou_{name}": value for name, value in zip(self.classes, ious, strict=True)},
        }
        return scores | (super().compute() if self.by_class else {})


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
        for row, which, amount in ((0, labels, right.long()), (1, labels, None), (2, predicted, None)):
            self.counts[row].index_add_(0, which, torch.ones_like(which) if amount is None else amount)
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

"""What an evaluation of a multi-label model measures, in one metric. Importing it takes seconds (torchmetrics)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pipeline.task_config import threshold_name
from pipeline.training.class_scores import macro_f1


class LabelScores(Metric):
    """Mean average precision; micro and macro F1, at each class's threshold and at 0.5; the thresholds.

    Every sample's logits are kept (8 bytes a class), since a rank's average precision can't be made one of all. What
    is computed from them doesn't depend on the samples' order, so not on the number of workers either.
    """

    full_state_update = False
    seen: list[Tensor]

    def __init__(self, classes: Sequence[str], thresholds: Sequence[float] | None, *, by_class: bool) -> None:
        """Make an empty metric.

        Args:
            classes: names.
            thresholds: of each class; None: those with the best F1 on what is evaluated.
            by_class: whether to compute `by_class` too, float64 [K, 5]: images of the class, those predicted as it,
                those of both, its average precision (NaN: it has no image) and its threshold.
        """
        super().__init__()
        self.classes, self.thresholds, self.by_class = tuple(classes), thresholds, by_class
        # Logits and labels in one flat list: a worker without a sample then passes on an empty one of the same type.
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add float32 logits [B, K] and multi-hot labels [B, K]."""
        self.seen.append(torch.stack((logits, labels.to(logits.dtype)), 1).flatten())

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name."""
        logits, labels = dim_zero_cat(self.seen).view(-1, 2, len(self.classes)).unbind(1)
        probabilities, truth = logits.double().sigmoid(), labels > 0
        curves = torch.stack([class_curve(*column) for column in zip(logits.T, truth.T, strict=True)])
        precision, chosen = curves.unbind(1)
        if self.thresholds is not None:
            chosen = torch.tensor(self.thresholds, dtype=torch.float64, device=logits.device)
        counts = _counts(probabilities >= chosen, truth)
        scores = {"map": precision.nanmean().nan_to_num(0.0)}
        scores |= _f1(counts, "") | _f1(_counts(probabilities >= 0.5, truth), "_at_half")
        scores |= {threshold_name(name): value for name, value in zip(self.classes, chosen, strict=True)}
        rows = torch.stack((*counts.double(), precision, chosen), 1)
        return scores | ({"by_class": rows} if self.by_class else {})


def class_curve(logits: Tensor, truth: Tensor) -> Tensor:
    """Return a class's average precision and the threshold with its best F1, float64 [2]; (NaN, 0.5) without images.

    Average precision is the sum over the distinct logits, from the highest, of what each adds to the recall times the
    precision down to it: images with equal ones count together. The threshold is a probability, in the middle between
    the lowest one that it takes in and the next one (or 0); of several with the best F1 it is the highest.

    Args:
        logits: float32 [N]; not their sigmoids, whose last bit depends on the place in the tensor.
        truth: bool [N], which of the images have the class.
    """
    if not truth.any():
        return torch.tensor((torch.nan, 0.5), dtype=torch.float64, device=logits.device)
    ranked, order = logits.sort(descending=True)
    last = torch.ones_like(truth)
    last[:-1] = ranked[1:] != ranked[:-1]
    right = truth[order].cumsum(0)[last].double()
    taken = last.nonzero()[:, 0] + 1
    recall = right / right[-1]
    precision = (recall.diff(prepend=recall.new_zeros(1)) * right / taken).sum()
    best = (2 * right / (taken + right[-1])).argmax()
    values = torch.cat((ranked[last].double().sigmoid(), right.new_zeros(1)))
    return torch.stack((precision, (values[best] + values[best + 1]) / 2))


def _counts(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return int64 [3, K]: images of each class, those predicted as it, and those of both."""
    return torch.stack((truth.sum(0), predicted.sum(0), (predicted & truth).sum(0)))


def _f1(counts: Tensor, suffix: str) -> dict[str, Tensor]:
    """Return micro F1, and macro F1 over the classes that occur or are predicted; 0 where there is neither."""
    of_class, predicted, right = counts
    either = (of_class + predicted).sum().clamp_min(1)
    return {
        f"micro_f1{suffix}": 2 * right.sum().double() / either,
        f"macro_f1{suffix}": macro_f1(right, of_class, predicted).nan_to_num(0.0),
    }

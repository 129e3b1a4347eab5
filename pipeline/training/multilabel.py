"""The multi-label task: any number of classes an image, a sigmoid for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.task_config import MultilabelConfig, threshold_name
from pipeline.training.class_scores import ClassRow
from pipeline.training.device import constant
from pipeline.training.loss_metric import loss_alone, mean_loss, weight_of_each

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class MultilabelTask:
    """Binary cross-entropy or asymmetric loss of each class; `LabelScores` and the loss as metrics.

    Targets are soft, float [B, K], each class's for itself. Mixup and CutMix blend them linearly, CutMix by the areas:
    an image that is three quarters of a cat's picture and a quarter of a dog's has the targets 0.75 and 0.25.
    """

    exclusive = False

    def __init__(
        self, config: MultilabelConfig, classes: tuple[str, ...], evaluated: Mapping[str, float] | None = None
    ) -> None:
        """Make the task.

        Args:
            config: the losses.
            classes: names.
            evaluated: a recorded evaluation (`TrainState.evaluation`), whose thresholds are used; 0.5 for those that it
                lacks. None: each evaluation chooses its own, as training does.
        """
        self.config, self.classes, self.num_outputs = config, classes, len(classes)
        self._weights = weight_of_each(config.positive_weights, classes)
        self.thresholds: tuple[float, ...] | None = None
        if evaluated is not None:
            self.thresholds = tuple(evaluated.get(f"val/{threshold_name(name)}", 0.5) for name in classes)

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return smoothed multi-hot targets, float [B, K]."""
        smoothing = self.config.label_smoothing
        return batch.labels.to(device, non_blocking=True).float() * (1 - smoothing) + smoothing / 2

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of float32 logits [B, K] against soft targets [B, K]."""
        config, logits = self.config, logits.float()
        weights = None if self._weights is None else constant(self._weights, logits.device)
        if config.loss == "bce":
            return {"loss": F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)}
        gammas = {"gamma_neg": config.gamma_neg, "gamma_pos": config.gamma_pos}
        return {"loss": asymmetric_loss(logits, targets, clip=config.clip, pos_weight=weights, **gammas)}

    def metrics(self, *, by_class: bool = False) -> MetricCollection:
        """Return the scores of `LabelScores`, and the binary cross-entropy without smoothing."""
        from torchmetrics import MetricCollection  # takes seconds, which a worker's start should not

        from pipeline.training.label_scores import LabelScores

        scores = LabelScores(self.classes, self.thresholds, by_class=by_class)
        metrics: dict[str, Any] = {"scores": scores, "loss": mean_loss()}
        return MetricCollection(metrics, compute_groups=False)

    def loss_metric(self) -> MetricCollection:
        """Return the binary cross-entropy alone."""
        return loss_alone()

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add logits [B, K] and the batch's multi-hot labels [B, K]."""
        logits, labels = logits.float(), batch.labels.to(logits.device, non_blocking=True)
        for name in metrics:
            if name == "loss":
                losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
                metrics[name].update(losses)
            else:
                metrics[name].update(logits, labels)

    def class_rows(self, by_class: Tensor) -> tuple[ClassRow, ...]:
        """Return a row for each class from the `by_class` of `LabelScores`."""
        return tuple(_row(name, *values) for name, values in zip(self.classes, by_class.tolist(), strict=True))

    def picture(self, batch: Batch, logits: Tensor) -> bytes:
        """Return images with their labels and, where they differ, what was missed and what isn't there."""
        from pipeline.training.figures import multilabelled_images

        thresholds = torch.tensor(self.thresholds or [0.5] * self.num_outputs, dtype=torch.float64)
        predicted = logits.cpu().double().sigmoid() >= thresholds
        return multilabelled_images(batch.images, batch.labels.cpu().bool(), predicted, self.classes)


def _row(
    name: str, count: float, predicted: float, right: float, average_precision: float, threshold: float
) -> ClassRow:
    return ClassRow(
        name=name,
        count=int(count),
        recall=right / count if count else None,
        precision=right / predicted if predicted else None,
        f1=2 * right / (count + predicted) if count + predicted else None,
        iou=right / (count + predicted - right) if count + predicted else None,
        average_precision=average_precision if count else None,
        threshold=threshold,
    )


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_neg: float,
    gamma_pos: float,
    clip: float,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the asymmetric loss of logits [B, K], averaged over images and classes.

    Ridnik et al., Asymmetric Loss for Multi-Label Classification, 2021 (arXiv 2009.14119), equations 4 to 7: with
    q = max(p - clip, 0), a positive's term is -(1 - p)^gamma_pos log p and a negative's -q^gamma_neg log(1 - q). Soft
    targets [B, K], as smoothing, Mixup and CutMix make them, weigh a class's two terms; `pos_weight` [K] multiplies the
    positives'. The authors' code sums over the classes; the mean has gradients of the same size for any number of them.
    """
    positive = F.logsigmoid(logits)
    probability = positive.exp()
    shifted = (probability - clip).clamp_min(0)
    # log(1 - q), which for a clip of 0 is that of the logits themselves: exact where p rounds to 1.
    negative = F.logsigmoid(-logits) if clip == 0 else torch.log1p(-shifted)
    if gamma_pos:
        positive = positive * (1 - probability).clamp_min(1e-7) ** gamma_pos
    if gamma_neg:  # at 0 the gradient of a power below 1 is infinite
        negative = negative * torch.where(shifted > 0, shifted.clamp_min(1e-7) ** gamma_neg, 0.0)
    if pos_weight is not None:
        positive = positive * pos_weight
    return -(targets * positive + (1 - targets) * negative).mean()

"""The segmentation task: a class for every pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from datasets.loading.batch import Batch
from datasets.transforms.formats import IGNORED
from pipeline.task_config import SegmentationConfig
from pipeline.training.class_scores import ClassRow, class_rows
from pipeline.training.device import constant
from pipeline.training.loss_metric import loss_alone, mean_loss, weight_of_each
from pipeline.training.lovasz import lovasz_softmax

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class SegmentationTask:
    """Cross-entropy and Dice over pixels; mean IoU, IoU of each class, pixel accuracy and loss as metrics.

    Targets are soft, float [B, K, H, W]: a pixel that is to be ignored has zeros everywhere, so that the sum over the
    classes is the pixel's weight, and stays so when Mixup blends two images.
    """

    exclusive = True

    def __init__(self, config: SegmentationConfig, classes: tuple[str, ...]) -> None:
        self.config, self.classes, self.num_outputs = config, classes, len(classes)
        self._weights = weight_of_each(config.class_weights, classes)

    def masks(self, batch: Batch, device: torch.device | None = None) -> Tensor:
        """Return the class of each pixel, uint8 [B, H, W]; `IGNORED` where none is learned or measured.

        They are on `device`, or where the batch is.
        """
        assert batch.masks is not None, "preflight lets only data with masks through"
        # Copied first: from page-locked memory the host does not wait for it, and a changed mask would not be there.
        masks = batch.masks.to(device, non_blocking=True)
        return masks.masked_fill(masks == self.config.ignore_index, IGNORED)

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return one-hot targets, float [B, K, H, W], zero at ignored pixels."""
        masks = self.masks(batch, device).long()
        one_hot = F.one_hot(masks.masked_fill(masks == IGNORED, self.num_outputs), self.num_outputs + 1)
        return one_hot[..., : self.num_outputs].permute(0, 3, 1, 2).float()

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return `loss` and its parts for logits [B, K, H, W]; Dice is averaged over the classes that are there.

        Cross-entropy and Dice are of sums over the pixels of all workers: a mean of the workers' losses would weigh a
        pixel the more, the fewer its worker has, and Dice is no mean at all. With gradient accumulation each
        micro-batch counts alike.
        """
        logits = logits.float()
        probabilities = logits.softmax(1)
        shares = probabilities * targets.sum(1, keepdim=True)
        dims = (0, 2, 3)
        log_likelihood = (targets * F.log_softmax(logits, 1)).sum(dims)
        here = torch.stack((log_likelihood, (shares * targets).sum(dims), shares.sum(dims), targets.sum(dims)))
        log_likelihood, common, predicted, total = sum_over_workers(here)
        if self._weights is not None:
            log_likelihood = log_likelihood * constant(self._weights, logits.device)
        cross_entropy = -log_likelihood.sum() / total.sum().clamp_min(1)
        scores = self._overlap(common, predicted, total)
        there = (total > 0).float()
        dice = ((1 - scores) * there).sum() / there.sum().clamp_min(1)
        terms = {"cross_entropy": cross_entropy, "dice": dice}
        loss = cross_entropy + self.config.dice_weight * dice
        if self.config.lovasz_weight:
            terms["lovasz"] = lovasz_softmax(probabilities, targets)
            loss = loss + self.config.lovasz_weight * terms["lovasz"]
        return {"loss": loss, **terms}

    def _overlap(self, common: Tensor, predicted: Tensor, total: Tensor) -> Tensor:
        """Return each class's Dice score, or Tversky index where the two kinds of mistakes weigh otherwise."""
        alpha, beta = self.config.false_positive_weight, self.config.false_negative_weight
        if alpha == beta == 0.5:
            return 2 * common / (predicted + total).clamp_min(1e-6)
        return common / (common + alpha * (predicted - common) + beta * (total - common)).clamp_min(1e-6)

    def metrics(self, *, by_class: bool = False) -> MetricCollection:
        """Return miou (over classes that occur or are predicted), iou_CLASS, pixel_accuracy, and the cross-entropy as
        loss; by class the confusion matrix, int64 [truth, prediction]: pixels.
        """
        from torchmetrics import MetricCollection

        from pipeline.training.metrics import PixelScores

        scores = PixelScores(self.classes, by_class=by_class, ignored=self.config.ignore_index)
        metrics: dict[str, Any] = {"scores": scores, "loss": mean_loss()}
        return MetricCollection(metrics, compute_groups=False)

    def loss_metric(self) -> MetricCollection:
        """Return the cross-entropy alone."""
        return loss_alone()

    def class_rows(self, by_class: Tensor) -> tuple[ClassRow, ...]:
        """Return a row for each class from the confusion matrix; without scores for one that is left out."""
        return tuple(
            replace(row, recall=None, precision=None, f1=None, iou=None) if index == self.config.ignore_index else row
            for index, row in enumerate(class_rows(by_class, self.classes))
        )

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add logits [B, K, H, W] and the batch's masks [B, H, W]."""
        masks = self.masks(batch, logits.device).long()
        known = masks != IGNORED
        for name in metrics:
            if name == "loss":
                values = F.cross_entropy(logits.float(), masks, reduction="none", ignore_index=IGNORED)
                metrics[name].update(values, known)
            else:
                metrics[name].update(logits.argmax(1), masks, known)

    def picture(self, batch: Batch, logits: Tensor) -> bytes:
        """Return rows of image, truth and prediction."""
        from pipeline.training.figures import segmented_images

        return segmented_images(batch.images, self.masks(batch), logits.argmax(1), self.classes)


def sum_over_workers(here: Tensor) -> Tensor:
    """Return the sum of all workers' tensors, with the gradient that DDP's mean over the workers makes right.

    A function of the sum is the same on every worker, and its gradient on each is of that worker's own part only: DDP
    divides the sum of these by the number of workers, so each is multiplied by it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return here
    total = here.detach().clone()
    dist.all_reduce(total)
    return total + (here - here.detach()) * dist.get_world_size()

"""The regression task: one or several numbers of an image.

A network learns them in standard deviations from their mean over the training data, so that they have the same scale
whatever their units are. The task's config holds both (`pipeline.run.target_numbers` puts them there). A trained model
is used in the targets' own units: `Unstandardized` is around it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.loading.batch import Batch
from pipeline.task_config import RegressionConfig
from pipeline.training.class_scores import ClassRow
from pipeline.training.device import constant
from pipeline.training.loss_metric import loss_alone, mean_loss

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

_LOSSES = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss}


class RegressionTask:
    """Mean squared, smooth L1 or L1 loss of standardized targets; MAE, RMSE and R2 of the targets as metrics.

    Targets are float64 [B, N] until they are standardized: float32 rounds a time in seconds since 1970 by up to a
    minute. Mixup blends them linearly, as it does the images.
    """

    exclusive = False

    def __init__(self, config: RegressionConfig, classes: tuple[str, ...], *, in_units: bool = False) -> None:
        """Make the task.

        Args:
            config: the loss, and each target's mean and deviation.
            classes: names of the targets.
            in_units: outputs are in the targets' own units, not in standard deviations.
        """
        assert len(config.target_mean) == len(config.target_std) == len(classes)
        self.config, self.classes, self.num_outputs = config, classes, len(classes)
        self.in_units = in_units

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return standardized targets, float32 [B, N]."""
        return self._standardized(batch.labels).to(device, non_blocking=True)

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of outputs [B, N], in standard deviations, against targets [B, N]."""
        return {"loss": _LOSSES[self.config.loss](logits.float(), targets)}

    def metrics(self, *, by_class: bool = False) -> MetricCollection:
        """Return the scores of `TargetScores`, and the loss; by class its tensor of each target."""
        from torchmetrics import MetricCollection  # takes seconds, which a worker's start should not

        from pipeline.training.target_scores import TargetScores

        scores = TargetScores(self.classes, self.config.target_mean, self.config.target_std, by_class=by_class)
        metrics: dict[str, Any] = {"scores": scores, "loss": mean_loss()}
        return MetricCollection(metrics, compute_groups=False)

    def loss_metric(self) -> MetricCollection:
        """Return the loss alone."""
        return loss_alone()

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add outputs [B, N] and the batch's targets [B, N]."""
        outputs, truth = logits.float(), batch.labels.to(logits.device, non_blocking=True)
        standardized = self._standardized(outputs) if self.in_units else outputs
        for name in metrics:
            if name == "loss":
                losses = _LOSSES[self.config.loss](standardized, self._standardized(truth), reduction="none")
                metrics[name].update(losses)
            else:
                metrics[name].update(self._values(outputs), truth)

    def class_rows(self, by_class: Tensor) -> tuple[ClassRow, ...]:
        """Return a row for each target from the `by_class` of `TargetScores`."""
        nothing = {"recall": None, "precision": None, "f1": None, "iou": None}
        return tuple(
            ClassRow(name=name, count=int(count), mae=mae, rmse=rmse, r2=r2, **nothing)
            for name, (count, mae, rmse, r2) in zip(self.classes, by_class.tolist(), strict=True)
        )

    def picture(self, batch: Batch, logits: Tensor) -> bytes:
        """Return images with their targets and, below, what was estimated."""
        from pipeline.training.figures import valued_images

        return valued_images(batch.images, batch.labels.cpu(), self._values(logits.float()).cpu(), self.classes)

    def _standardized(self, values: Tensor) -> Tensor:
        mean, std = self._numbers(values.device)
        return ((values.double() - mean) / std).float()

    def _values(self, outputs: Tensor) -> Tensor:
        """Return outputs in the targets' units, float64."""
        mean, std = self._numbers(outputs.device)
        return outputs.double() if self.in_units else outputs.double() * std + mean

    def _numbers(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each target's mean and deviation, float64 [N]."""
        config = self.config
        return tuple(constant(part, device, torch.float64) for part in (config.target_mean, config.target_std))  # type: ignore[return-value]


class Unstandardized(nn.Module):
    """A trained model whose outputs [B, N] are in the targets' own units."""

    def __init__(self, model: nn.Module, config: RegressionConfig) -> None:
        super().__init__()
        self.model = model
        # No buffers: an export of fp16 would round them, or find them too large.
        self._mean, self._std = torch.tensor(config.target_mean), torch.tensor(config.target_std)

    def forward(self, images: Tensor) -> Tensor:
        """Run, and leave the standard deviations."""
        outputs: Tensor = self.model(images)
        return outputs.float() * self._std.to(outputs.device) + self._mean.to(outputs.device)

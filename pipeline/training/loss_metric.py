"""The mean loss of an evaluation, which has no weights, and the weights of training's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.task_config import ClassWeights

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


def mean_loss() -> Metric:
    """Return an empty mean of float64 losses."""
    from torchmetrics import MeanMetric

    # Sums of float32 losses are kept in float64, where they don't depend on the order of the workers.
    return MeanMetric(nan_strategy="disable").set_dtype(torch.float64)


def loss_alone() -> MetricCollection:
    """Return a collection of nothing but the `loss`."""
    from torchmetrics import MetricCollection

    return MetricCollection({"loss": mean_loss()})


def weights_tensor(weights: ClassWeights, classes: Sequence[str]) -> Tensor | None:
    """Return float32 [K], or None without weights; `pipeline.run.class_weights` has put numbers in place of `auto`."""
    if weights == "none":
        return None
    assert weights != "auto"
    assert len(weights) == len(classes)
    return torch.tensor(weights, dtype=torch.float32)

"""The mean loss of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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

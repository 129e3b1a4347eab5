"""The mean loss of an evaluation, which has no weights, and the weights of training's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.task_config import ClassWeights

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


def mean_loss() -> Metric:
    """Return an empty mean of losses."""
    from pipeline.training.metrics import MeanLoss  # takes seconds, which a worker's start should not

    return MeanLoss()


def loss_alone() -> MetricCollection:
    """Return a collection of nothing but the `loss`."""
    from torchmetrics import MetricCollection

    return MetricCollection({"loss": mean_loss()})


def weight_of_each(weights: ClassWeights, classes: Sequence[str]) -> tuple[float, ...] | None:
    """Return a weight a class, or None without; `pipeline.run.class_weights` has put numbers in place of `auto`."""
    if weights == "none":
        return None
    assert weights != "auto"
    assert len(weights) == len(classes)
    return weights

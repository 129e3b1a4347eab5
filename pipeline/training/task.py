"""Tasks: what a batch means. The loop knows *when*, a task knows *what*: targets, loss, metrics, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.task_config import MultilabelConfig, RegressionConfig, SegmentationConfig, TaskConfig
from pipeline.training.class_scores import ClassRow
from pipeline.training.classification import ClassificationTask
from pipeline.training.multilabel import MultilabelTask
from pipeline.training.regression import RegressionTask
from pipeline.training.segmentation import SegmentationTask

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class Task(Protocol):
    """What the trainer asks of a task."""

    @property
    def config(self) -> TaskConfig:
        """What it was made from."""
        ...

    classes: tuple[str, ...]
    """Class names, in the order of the outputs."""
    num_outputs: int
    """Channels of the model's logits."""
    exclusive: bool
    """Whether an image, or a pixel, is of one class: then `by_class` of the metrics is the confusion matrix."""

    def targets(self, batch: Batch, device: torch.device) -> Tensor:
        """Return soft float targets, batch first, that Mixup may blend."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return `{"loss": scalar, ...}`; further scalars are logged under their names."""
        ...

    def metrics(self, *, by_class: bool = False) -> MetricCollection:
        """Return fresh evaluation metrics; their states are of all workers, so they are exact.

        With `by_class` they include the tensor `by_class`: what `class_rows` is made from.
        """
        ...

    def loss_metric(self) -> MetricCollection:
        """Return the `loss` of `metrics()` alone."""
        ...

    def class_rows(self, by_class: Tensor) -> tuple[ClassRow, ...]:
        """Return a row for each class."""
        ...

    def update(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        """Add one evaluated batch to the metrics."""
        ...

    def picture(self, batch: Batch, logits: Tensor) -> bytes:
        """Return a PNG of some images with their truth and the prediction."""
        ...


def build_task(config: TaskConfig, classes: tuple[str, ...], evaluated: Mapping[str, float] | None = None) -> Task:
    """Make the task that a config names, for these class names.

    `evaluated` is a checkpoint's newest evaluation, where the task is to be used as that left it.
    """
    if isinstance(config, SegmentationConfig):
        return SegmentationTask(config, classes)
    if isinstance(config, MultilabelConfig):
        return MultilabelTask(config, classes, evaluated)
    if isinstance(config, RegressionConfig):
        return RegressionTask(config, classes, in_units=evaluated is not None)
    return ClassificationTask(config, classes)

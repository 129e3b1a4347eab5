"""What an evaluation's report shows of single samples: which are the worst, and how sure the model was of them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from datasets.loading.batch import Batch
from datasets.transforms.formats import IGNORED
from pipeline.task_config import MultilabelConfig, RegressionConfig
from pipeline.training.segmentation import SegmentationTask
from pipeline.training.task import Task

BINS = 15
"""Bins of equal width of the confidence, as in the expected calibration error."""
PER_CELL = 4
"""Images that are kept for each pair of classes in segmentation."""
MOST_PAIRED = 64
"""Classes up to which images are kept for each pair in segmentation."""


class LabelRecord:
    """Of each image its label, its prediction and the confidence in it: 24 bytes an image."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self.bins = np.zeros((3, BINS))

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Add logits [B, K]."""
        confidence, predicted = logits.float().softmax(1).max(1)
        columns = (batch.stream_index, batch.labels, predicted.cpu(), confidence.cpu())
        self._parts.append(np.stack([column.double().numpy() for column in columns]))
        _add_confidence(self.bins, self._parts[-1][3], self._parts[-1][1] == self._parts[-1][2])

    @property
    def rows(self) -> np.ndarray:
        """Samples with their numbers, float64 [4, N]: number, label, prediction, confidence."""
        return np.concatenate(self._parts, 1)


class MultilabelRecord:
    """Of each image its classes and the probabilities of all: 5 bytes a class."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.bins = np.zeros((3, BINS))

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Add logits [B, K]. Each class of an image is a prediction, that it is there or that it isn't."""
        probabilities, truth = logits.float().sigmoid().cpu().numpy(), batch.labels.cpu().numpy() > 0
        self._parts.append((batch.stream_index.numpy(), probabilities, truth))
        sure = probabilities.ravel().astype(np.float64)
        _add_confidence(self.bins, np.maximum(sure, 1 - sure), (sure >= 0.5) == truth.ravel())

    @cached_property
    def numbers(self) -> np.ndarray:
        """The images' numbers, int64 [N]."""
        return np.concatenate([part[0] for part in self._parts])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 [N, K]."""
        return np.concatenate([part[1] for part in self._parts])

    @cached_property
    def truth(self) -> np.ndarray:
        """Which classes an image has, bool [N, K]."""
        return np.concatenate([part[2] for part in self._parts])


class MaskRecord:
    """Of each image its IoU by class, and for each pair of classes the images with the most pixels of it."""

    def __init__(self, task: SegmentationTask) -> None:
        self.task, self.num_classes = task, len(task.classes)
        self._meant = torch.arange(self.num_classes) != task.config.ignore_index
        self._numbers: list[np.ndarray] = []
        self._ious: list[np.ndarray] = []
        self.bins = np.zeros((3, BINS))
        side = self.num_classes if self.num_classes <= MOST_PAIRED else 0
        self.pair_pixels = torch.zeros(side, side, PER_CELL, dtype=torch.int64)
        """int64 [truth, prediction, PER_CELL]: pixels, most first; 0: no image"""
        self.pair_images = torch.zeros(side, side, PER_CELL, dtype=torch.int64)
        """the images' numbers"""

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Add logits [B, K, H, W]."""
        confidence, predicted = logits.float().softmax(1).max(1)
        truth, predicted = self.task.masks(batch).long(), predicted.cpu()
        known = truth != IGNORED
        _add_confidence(self.bins, confidence.cpu()[known].double().numpy(), (predicted == truth)[known].numpy())
        counts = torch.stack([self._pairs(*one) for one in zip(truth, predicted, known, strict=True)])
        right = counts.diagonal(dim1=1, dim2=2)
        union = counts.sum(1) + counts.sum(2) - right
        self._ious.append(torch.where((union > 0) & self._meant, right / union, torch.nan).numpy())
        self._numbers.append(batch.stream_index.numpy())
        if len(self.pair_pixels):
            self._keep(counts.permute(1, 2, 0), batch.stream_index)

    @property
    def numbers(self) -> np.ndarray:
        """The images' numbers, int64 [N]."""
        return np.concatenate(self._numbers)

    @property
    def ious(self) -> np.ndarray:
        """The IoU of each class in each image, float [N, K]; NaN where it is neither there nor predicted.

        Of a class that is left out it is NaN everywhere: it is not in the mean.
        """
        return np.concatenate(self._ious)

    def _pairs(self, truth: Tensor, predicted: Tensor, known: Tensor) -> Tensor:
        pairs = truth[known] * self.num_classes + predicted[known]
        return torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, -1)

    def _keep(self, counts: Tensor, numbers: Tensor) -> None:
        pixels = torch.cat([self.pair_pixels, counts], 2)
        images = torch.cat([self.pair_images, numbers.expand(counts.shape)], 2)
        self.pair_pixels, which = pixels.topk(PER_CELL, dim=2)
        self.pair_images = images.gather(2, which)


class NumberRecord:
    """Of each image its numbers and what was estimated of them: 16 bytes a target."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, batch: Batch, outputs: Tensor) -> None:
        """Add outputs [B, N] in the targets' own units."""
        self._parts.append((batch.stream_index.numpy(), batch.labels.double().numpy(), outputs.double().cpu().numpy()))

    @cached_property
    def numbers(self) -> np.ndarray:
        """The images' numbers, int64 [images]."""
        return np.concatenate([part[0] for part in self._parts])

    @cached_property
    def truth(self) -> np.ndarray:
        """float64 [images, N]."""
        return np.concatenate([part[1] for part in self._parts])

    @cached_property
    def predicted(self) -> np.ndarray:
        """float64 [images, N]."""
        return np.concatenate([part[2] for part in self._parts])


ClassRecord = LabelRecord | MultilabelRecord | MaskRecord
"""A record of classes. `bins` is float64 [3, BINS]: predictions (in segmentation: pixels; multi-label: classes of
images), right ones, the sum of their confidence."""
Record = ClassRecord | NumberRecord
"""Takes what an evaluation sees: each batch with its outputs."""


def _add_confidence(bins: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> None:
    index = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    for row, weights in enumerate((None, right, confidence)):
        bins[row] += np.bincount(index, weights=weights, minlength=BINS)


def record_for(task: Task) -> Record:
    """Return an empty record for a task."""
    if isinstance(task, SegmentationTask):
        return MaskRecord(task)
    if isinstance(task.config, MultilabelConfig):
        return MultilabelRecord()
    return NumberRecord() if isinstance(task.config, RegressionConfig) else LabelRecord()

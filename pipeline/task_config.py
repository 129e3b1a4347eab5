"""What a run learns: the config of each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from datasets.transforms.formats import IGNORED

ClassWeights = Literal["none", "auto"] | tuple[float, ...]
"""Weights by class: none, those that follow from the training data, or numbers in the order of the classes."""


def _check_weights(name: str, weights: ClassWeights) -> None:
    if isinstance(weights, tuple) and (not any(weights) or any(not 0 <= one < math.inf for one in weights)):
        raise ValueError(
            f"task.{name} is {weights}: it must be none, auto, or for each class a number of 0 or more, not all 0"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig:
    """Single-label classification."""

    kind: ClassVar = "classification"

    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes (0 to 1)."""
    class_weights: ClassWeights = "none"
    """Weights of the images in the training loss, by their class. auto: images / (classes * images of the class), of
    the classes that occur, so that the classes count alike and the mean over the images is 1; or a number for each
    class, in the order of the classes. The loss of evaluations has no weights."""
    focal_gamma: float = 0.0
    """Focal loss: each class's term of the training loss is multiplied by (1 - p) to this power, so that what is
    predicted well already counts less; usual is 2. 0: cross-entropy. The loss of evaluations is the cross-entropy."""

    def __post_init__(self) -> None:
        if not self.focal_gamma >= 0:
            raise ValueError(f"task.focal_gamma is {self.focal_gamma}: it must be 0 (off) or more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"task.label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        _check_weights("class_weights", self.class_weights)

    def metric_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return what an evaluation measures."""
        top5 = ("top5_accuracy",) if len(classes) > 5 else ()
        return ("accuracy", *top5, "balanced_accuracy", "macro_f1", "calibration_error", "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig:
    """A class for every pixel. Mixup blends masks as soft targets where a stage's `mixup_alpha` is above 0."""

    kind: ClassVar = "segmentation"

    dice_weight: float = 1.0
    """Weight of the Dice loss, which is added to the cross-entropy; 0: off."""
    false_positive_weight: float = 0.5
    """Weight of a false positive in the Dice loss (alpha of the Tversky loss, which it is with other weights than 0.5
    and 0.5)."""
    false_negative_weight: float = 0.5
    """Weight of a false negative in the Dice loss (beta of the Tversky loss); larger: fewer are missed."""
    lovasz_weight: float = 0.0
    """Weight of the Lovász-Softmax loss (arXiv 1705.08790), which is added as well: a surrogate of the mean IoU of the
    classes of each image; 0: off."""
    class_weights: ClassWeights = "none"
    """Weights of the pixels in the cross-entropy of training, by their class. auto: pixels / (classes * pixels of the
    class), by the data report of `jobs.prepare`, so that the classes count alike and the mean over the pixels is 1; or
    a number for each class, in the order of the classes. The loss of evaluations has no weights."""
    ignore_index: int = IGNORED
    """Class that the loss and the metrics leave out, by its number; 255: none. Pixels of the value 255 are always left
    out: those that the data ignore, and what lies outside of a shifted image."""

    def __post_init__(self) -> None:
        for name in ("dice_weight", "lovasz_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"task.{name} is {getattr(self, name)}: it must be 0 (off) or more")
        for name in ("false_positive_weight", "false_negative_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"task.{name} is {getattr(self, name)}: it must be above 0")
        _check_weights("class_weights", self.class_weights)
        if not 0 <= self.ignore_index <= 255:
            raise ValueError(f"task.ignore_index is {self.ignore_index}: it must be from 0 to 255")

    def metric_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return what an evaluation measures."""
        return ("miou", "pixel_accuracy", "loss", *(f"iou_{name}" for name in classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class MultilabelConfig:
    """Any number of classes an image: a sigmoid for each class. Mixup blends the labels, CutMix weighs them by area."""

    kind: ClassVar = "multilabel"

    loss: Literal["bce", "asymmetric"] = "bce"
    """Training loss of each class, averaged over classes and images. bce: binary cross-entropy; asymmetric: the
    asymmetric loss (arXiv 2009.14119), for many classes of which an image has few. The loss of evaluations is the
    binary cross-entropy."""
    label_smoothing: float = 0.0
    """Targets are moved so far from 0 and 1 towards 0.5 in training: with 0.1 they are 0.05 and 0.95 (0 to 1)."""
    gamma_neg: float = 4.0
    """Asymmetric loss: a negative's term is multiplied by its probability to this power."""
    gamma_pos: float = 0.0
    """Asymmetric loss: a positive's term is multiplied by (1 - its probability) to this power."""
    clip: float = 0.05
    """Asymmetric loss: subtracted from a negative's probability, so that those below it are not learned from."""
    positive_weights: ClassWeights = "none"
    """Weights of each class's positives in the training loss. auto: images without the class / images with it, at most
    `max_positive_weight`; or a number for each class, in the order of the classes. The loss of evaluations has no
    weights."""
    max_positive_weight: float = 20.0
    """The largest weight that `positive_weights auto` gives."""

    def __post_init__(self) -> None:
        for name in ("gamma_neg", "gamma_pos"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"task.{name} is {getattr(self, name)}: it must be 0 (off) or more")
        for name in ("label_smoothing", "clip"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"task.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        _check_weights("positive_weights", self.positive_weights)
        if not 0 < self.max_positive_weight < math.inf:
            raise ValueError(f"task.max_positive_weight is {self.max_positive_weight}: it must be above 0")

    def metric_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return what an evaluation measures."""
        scores = ("map", "micro_f1", "macro_f1", "micro_f1_at_half", "macro_f1_at_half", "loss")
        return (*scores, *(threshold_name(name) for name in classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionConfig:
    """One or several numbers an image. Mixup blends them; CutMix, which cuts images, is refused."""

    kind: ClassVar = "regression"

    loss: Literal["mse", "smooth_l1", "l1"] = "mse"
    """Loss of each standardized target, averaged over targets and images: the squared error, the smooth L1 loss (Huber
    loss with delta 1: one standard deviation), or the absolute error. The loss of evaluations is the same."""
    target_mean: tuple[float, ...] = ()
    """Mean of each target, by which it is standardized; empty: that of the training data."""
    target_std: tuple[float, ...] = ()
    """Standard deviation of each target; empty: that of the training data."""

    def __post_init__(self) -> None:
        if len(self.target_mean) != len(self.target_std):
            raise ValueError("task.target_mean and task.target_std are for the same targets: give both, or none")
        if any(not math.isfinite(one) for one in self.target_mean):
            raise ValueError(f"task.target_mean is {self.target_mean}: it must be numbers")
        if any(not 0 < one < math.inf for one in self.target_std):
            raise ValueError(f"task.target_std is {self.target_std}: each must be above 0")

    def metric_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return what an evaluation measures; `classes` are the targets' names."""
        scores = ("mae", "rmse", "r2")
        each = tuple(f"{score}_{name}" for score in scores for name in classes) if len(classes) > 1 else ()
        return (*scores, *each, "loss")


def threshold_name(class_name: str) -> str:
    """Return the metric that a class's chosen threshold is recorded as."""
    return f"threshold_{class_name}"


TaskConfig = ClassificationConfig | SegmentationConfig | MultilabelConfig | RegressionConfig
"""What a run learns. A recorded config is of the first that has all its fields (`recorded_config`), so each has one of
its own."""

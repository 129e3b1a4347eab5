"""`MultilabelConfig`: the task of any number of classes an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


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

    def __post_init__(self) -> None:
        for name in ("gamma_neg", "gamma_pos"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"task.{name} is {getattr(self, name)}: it must be 0 (off) or more")
        for name in ("label_smoothing", "clip"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"task.{name} is {getattr(self, name)}: it must be at least 0 and below 1")

    def metric_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return what an evaluation measures."""
        scores = ("map", "micro_f1", "macro_f1", "micro_f1_at_half", "macro_f1_at_half", "loss")
        return (*scores, *(threshold_name(name) for name in classes))


def threshold_name(class_name: str) -> str:
    """Return the metric that a class's chosen threshold is recorded as."""
    return f"threshold_{class_name}"

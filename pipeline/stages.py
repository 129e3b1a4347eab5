"""Training stages: values, their schedule, and the ramp that makes one from (start, end) ranges.

Progressive learning (EfficientNetV2, arXiv 2104.00298, section 4 and Algorithm 1): training is cut into stages, and
from stage to stage the image size and the regularization grow together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from infra.cluster import worker_range


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStage:
    """One step of progressive learning. A frozen value: what changes between stages is in here, all of it."""

    image_size: int
    """Side of the square training crop, in pixels."""
    epochs: float
    """Length, in passes over the training data."""
    batch_size: int
    """Global batch, in samples over all workers; gradient accumulation holds it whatever fits in memory."""
    randaugment_magnitude: float = 0.0
    """Strength of RandAugment on the paper's scale: 10 is the full range of each operation; 0 turns it off."""
    mixup_alpha: float = 0.0
    """Alpha of Mixup's Beta(alpha, alpha); 0 turns it off."""
    cutmix_alpha: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0 turns it off. With Mixup on too, each lane of a batch gets one of
    the two."""
    dropout: float = 0.0
    """Dropout rate before the classifier."""
    num_workers: int | tuple[int, int] = 0
    """Workers that train this stage, or a range (smallest, largest); 0: the cluster config's. Neighbours of equal
    number share a group."""

    def __post_init__(self) -> None:
        workers = worker_range(self.num_workers)
        if self.num_workers != 0 and not 1 <= workers[0] <= workers[1]:
            raise ValueError(
                f"stage.num_workers is {self.num_workers}: give at least 1, a range (smallest, largest), or 0 for the "
                "cluster's"
            )
        for name, low in (("image_size", 8), ("batch_size", 1)):
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"stage.{name} is {value}: it must be at least {low}")
        if not self.epochs > 0:
            raise ValueError(f"stage.epochs is {self.epochs}: a stage needs a length above 0")
        for name in ("randaugment_magnitude", "mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"stage.{name} is {value}: it must be 0 (off) or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"stage.dropout is {self.dropout}: it must be at least 0 and below 1")

    def num_samples(self, samples_per_epoch: int) -> int:
        """Length in samples: the whole global batches nearest to `epochs`, at least one."""
        return max(1, round(self.epochs * samples_per_epoch / self.batch_size)) * self.batch_size


@dataclass(frozen=True, slots=True)
class StageSpan:
    """Where a stage lies in a run: cursors `start <= cursor < stop`, in samples since the run's start."""

    index: int
    stage: TrainingStage
    start: int
    stop: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return (self.stop - self.start) // self.stage.batch_size


@dataclass(frozen=True, slots=True)
class TrainingSchedule:
    """The ordered stages of a run. Looked up, never mutated."""

    stages: tuple[TrainingStage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("the schedule has no stage: give it at least one TrainingStage")

    def spans(self, samples_per_epoch: int, starts: tuple[int, ...] = ()) -> Iterator[StageSpan]:
        """Yield each stage's span.

        `starts` are the cursors at which the first stages really began (a stage may have been ended early); the stages
        after them follow at their full length.
        """
        cursor = 0
        for index, stage in enumerate(self.stages):
            start = starts[index] if index < len(starts) else cursor
            cursor = start + stage.num_samples(samples_per_epoch)
            yield StageSpan(index, stage, start, cursor)

    def lookup(self, cursor: int, samples_per_epoch: int, starts: tuple[int, ...] = ()) -> StageSpan | None:
        """Return the span that `cursor` lies in, or None after the last stage."""
        spans = list(self.spans(samples_per_epoch, starts))
        if len(starts) > 1:  # a stage that was ended early is over, whatever its own length says
            spans = spans[len(starts) - 1 :]
        return next((span for span in spans if cursor < span.stop), None)

    def total_samples(self, samples_per_epoch: int) -> int:
        """Samples of the whole run when no stage is ended early."""
        return sum(stage.num_samples(samples_per_epoch) for stage in self.stages)


def ramp(
    *,
    epochs: float,
    batch_size: int,
    image_size: tuple[int, int],
    randaugment_magnitude: tuple[float, float] = (0.0, 0.0),
    mixup_alpha: tuple[float, float] = (0.0, 0.0),
    cutmix_alpha: tuple[float, float] = (0.0, 0.0),
    dropout: tuple[float, float] = (0.0, 0.0),
    num_stages: int = 4,
    size_multiple: int = 1,
) -> tuple[TrainingStage, ...]:
    """Make stages from (start, end) ranges, linear over the stages: Algorithm 1 of arXiv 2104.00298.

    The first stage has every range's start, the last its end; `epochs` (of the whole run) are shared out equally.
    Sizes are rounded to the nearest multiple of `size_multiple` pixels.
    """
    if num_stages < 1:
        raise ValueError(f"num_stages is {num_stages}: a ramp needs at least 1")

    def at(span: tuple[float, float], index: int) -> float:
        fraction = index / (num_stages - 1) if num_stages > 1 else 1.0
        return span[0] + (span[1] - span[0]) * fraction

    return tuple(
        TrainingStage(
            image_size=round(at(image_size, index) / size_multiple) * size_multiple,
            epochs=epochs / num_stages,
            batch_size=batch_size,
            randaugment_magnitude=at(randaugment_magnitude, index),
            mixup_alpha=at(mixup_alpha, index),
            cutmix_alpha=at(cutmix_alpha, index),
            dropout=at(dropout, index),
        )
        for index in range(num_stages)
    )

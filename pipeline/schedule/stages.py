"""Training stages: values, the ramp that makes them from (start, end) ranges, and the rules that may adapt them.

Progressive learning (EfficientNetV2, arXiv 2104.00298, section 4 and Algorithm 1): training is cut into stages, and
from stage to stage the image size and the regularization grow together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

AUTO = 0
"""A stage's batch size that follows the image size."""
MAX_IMAGE_SIZE = 16_384
"""Largest image size, in pixels: more is a mistake, and no memory holds it."""
MAX_EPOCHS = 1_000_000
"""Most epochs of a stage."""
Workers = int | tuple[int, int]
"""A number of workers, or a range of it: (smallest, largest)."""
RAMPED = {
    "image_size": "image_size",
    "randaugment": "randaugment_magnitude",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "dropout": "dropout",
    "stochastic_depth": "stochastic_depth",
}
"""What grows from stage to stage: its name in flags, and in the sweeps that have it, and its field of a stage."""
REGULARIZATION = tuple(field for field in RAMPED.values() if field != "image_size")
"""Fields of a stage that are its regularization."""


def mean_pixels(
    image_size: int, random_sizes: Sequence[int], random_size_share: float, *, aspect_ratio: float
) -> float:
    """Return the pixels of a stage's images, in the mean over its steps; long sides count without their rounding."""
    other = sum(size**2 for size in random_sizes) / max(1, len(random_sizes))
    squares = (1 - random_size_share) * image_size**2 + random_size_share * other
    return max(aspect_ratio, 1 / aspect_ratio) * squares


def worker_range(workers: Workers) -> tuple[int, int]:
    """Return the smallest and the largest number of workers."""
    return (workers, workers) if isinstance(workers, int) else (workers[0], workers[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStage:
    """One step of progressive learning. A frozen value: what changes between stages is in here, all of it."""

    image_size: int
    """Short side of the training crop, in pixels; `data.aspect_ratio` says how long the other one is. 1: a square."""
    epochs: float
    """Length, in passes over the training data."""
    batch_size: int
    """Global batch, in samples over all workers; gradient accumulation keeps it independent of what fits in memory. 0
    (`auto` on the command line): the last stage's batch size, enlarged as far as the images are smaller (see
    `adaptive.batch_growth`)."""
    crop_area: tuple[float, float] | None = None
    """Smallest and largest share of the image's area that a training crop covers in this stage; None: `data.crop_area`,
    which says what 1 1 means.
    Smaller crops in stages with small images keep objects at the size in pixels that later stages and evaluations show
    (compare FixRes, arXiv 1906.06423)."""
    low_frequency_of: int = 0
    """Crops are decoded at this size, in pixels, such as the last stage's, and the network sees the `image_size` lowest
    frequencies of them (EfficientTrain++, arXiv 2405.08768); 0: they are resized to `image_size`."""
    random_sizes: tuple[int, ...] = ()
    """Other image sizes, in pixels, one of which `random_size_share` of the stage's steps train at."""
    random_size_share: float = 0.0
    """Share of the stage's steps that train at one of `random_sizes`; which ones is drawn by seed and cursor."""
    randaugment_magnitude: float = 0.0
    """Strength of RandAugment on the scale of `data.randaugment_policy`: of torchvision's, 10 is the full range of each
    operation; google's are the formulas of the released code, which the paper uses up to 25. 0 turns it off."""
    mixup_alpha: float = 0.0
    """Alpha of Mixup's Beta(alpha, alpha); 0 turns it off."""
    cutmix_alpha: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0 turns it off. With Mixup on too, each lane of a batch gets one of
    the two."""
    dropout: float = 0.0
    """Dropout rate before the classifier."""
    stochastic_depth: float | None = None
    """Drop probability of the last residual block, with the others in proportion; None: `model.stochastic_depth`."""
    lr_factor: float = 1.0
    """Factor of the learning rate in this stage. An automatic batch size sets it, by `adaptive.batch_lr_rule`."""
    fixres: bool = False
    """Train only the classifier and the norms in this stage, on the evaluation's crop and with `data.flip` (FixRes,
    arXiv 1906.06423): a short ending that fits the network to evaluation's size and object scale. The stage is
    evaluated at its own image size, usually larger than the one before it. RandAugment, Mixup and dropout are as the
    stage says."""
    num_workers: Workers = 0
    """Number of workers for this stage, or a range (smallest, largest); 0: `cluster.num_workers`. Neighbouring stages
    with the same number share a worker group."""

    def __post_init__(self) -> None:
        workers = worker_range(self.num_workers)
        if self.num_workers != 0 and not 1 <= workers[0] <= workers[1]:
            raise ValueError(
                f"stage.num_workers is {self.num_workers}: give at least 1, a range (smallest, largest), or 0 for the "
                "cluster's"
            )
        self._check_sizes()
        if self.batch_size < AUTO:
            raise ValueError(f"stage.batch_size is {self.batch_size}: it must be at least 1, or {AUTO} (auto)")
        if not 0 < self.epochs <= MAX_EPOCHS:
            raise ValueError(f"stage.epochs is {self.epochs:g}: it must be above 0 and at most {MAX_EPOCHS:,}")
        for name in ("randaugment_magnitude", "mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"stage.{name} is {value}: it must be 0 (off) or more")
        if self.crop_area is not None and not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(
                f"stage.crop_area is {self.crop_area}: it must be two shares with 0 < first <= second <= 1"
            )
        if self.fixres and self.crop_area is not None:
            raise ValueError(
                f"stage.crop_area is {self.crop_area}: a stage with fixres takes the evaluation's crop; leave one of "
                "them out"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"stage.dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.stochastic_depth is not None and not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stage.stochastic_depth is {self.stochastic_depth}: it must be at least 0 and below 1")
        if not 0 < self.lr_factor < math.inf:
            raise ValueError(f"stage.lr_factor is {self.lr_factor}: it must be above 0")

    def _check_sizes(self) -> None:
        for name, sizes in (("image_size", (self.image_size,)), ("random_sizes", self.random_sizes)):
            if not all(8 <= size <= MAX_IMAGE_SIZE for size in sizes):
                raise ValueError(f"stage.{name} is {getattr(self, name)}: it must be from 8 to {MAX_IMAGE_SIZE:,} px")
        if self.low_frequency_of and not self.image_size < self.low_frequency_of <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"stage.low_frequency_of is {self.low_frequency_of}: it must be above image_size={self.image_size} and "
                f"at most {MAX_IMAGE_SIZE:,}, or 0 (off)"
            )
        if not 0 <= self.random_size_share <= 1 or bool(self.random_size_share) != bool(self.random_sizes):
            raise ValueError(
                f"stage.random_size_share is {self.random_size_share}: it must be above 0 and at most 1 with "
                "random_sizes, and 0 without"
            )
        if self.low_frequency_of and self.random_sizes:
            raise ValueError("stage.low_frequency_of and random_sizes are both set: leave one of them out")

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """All sizes that the stage's steps may have: `image_size` first."""
        return tuple(dict.fromkeys((self.image_size, *self.random_sizes)))

    def mean_pixels(self, aspect_ratio: float) -> float:
        """Return the pixels of an image of this ratio, in the mean over the steps."""
        return mean_pixels(self.image_size, self.random_sizes, self.random_size_share, aspect_ratio=aspect_ratio)

    def workers(self, default: Workers) -> Workers:
        """Return the stage's own number of workers, or the `default` where it names none."""
        return self.num_workers or default

    def num_samples(self, samples_per_epoch: int) -> int:
        """Length in samples: the whole global batches nearest to `epochs`, at least one."""
        return max(1, round(self.epochs * samples_per_epoch / self.batch_size)) * self.batch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveConfig:
    """Stages that end when they have nothing more to give, regularization that follows the gap, batches that follow the
    image size. All off by default: the paper's fixed stages."""

    plateau: bool = False
    """Whether a stage ends early when `metric` has not improved for `patience` evaluations."""
    metric: str = "val/accuracy"
    """The metric to watch for a plateau: one that evaluations measure, see `checkpoint.best_metric`."""
    better: Literal["highest", "lowest"] = "highest"
    """Whether the highest or the lowest value of `metric` is the best."""
    patience: int = 3
    """Number of evaluations without improvement after which a stage ends."""
    min_delta: float = 0.0
    """A value counts as an improvement if it exceeds the best one by more than this."""
    min_epochs: float = 1.0
    """A stage doesn't end on a plateau before this many epochs."""
    max_epochs: float = 0.0
    """Largest length of a stage in epochs, including those that earlier stages passed on to it; 0: no limit."""
    unused: Literal["later", "saved"] = "later"
    """What happens to the epochs that a stage did not use: they go to the later stages, in proportion to their lengths
    (the last stage then always has its full length), or are saved, so that the run ends sooner."""
    closed_loop: bool = False
    """Whether the next stage's regularization is chosen from the gap between validation and training loss, within the
    range from the first stage's to the last stage's, instead of from the linear ramp."""
    gap: float = 0.0
    """The target of the closed loop: validation loss minus training loss, both measured without augmentation and with
    hard targets, at the evaluation's size. 0: of a model that has learned nothing by heart."""
    gap_samples: int = 2000
    """Closed loop: largest number of training samples whose loss is measured at each evaluation, as many as there are
    validation samples if those are fewer."""
    gain: float = 1.0
    """Closed loop: change of the strength (0: the first stage's regularization, 1: the last stage's) per unit of
    gap."""
    batch_growth: float = 4.0
    """Largest ratio of an automatic batch size to the last stage's. Within it the batch grows as the images get
    smaller, so that a step of every stage costs about the same."""
    batch_lr_rule: Literal["none", "sqrt", "linear"] = "sqrt"
    """How an automatic batch size scales the stage's learning rate: not at all, by the square root of the batch's
    growth, or linearly with it."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"adaptive.patience is {self.patience}: it must be at least 1")
        if self.min_delta < 0 or self.min_epochs < 0 or self.max_epochs < 0:
            raise ValueError("adaptive.min_delta, min_epochs and max_epochs must be at least 0")
        if self.max_epochs and self.max_epochs < self.min_epochs:
            raise ValueError(f"adaptive.max_epochs is {self.max_epochs}: it must be at least min_epochs, or 0 (off)")
        if self.gap_samples < 1:
            raise ValueError(f"adaptive.gap_samples is {self.gap_samples}: it must be at least 1")
        if not self.gain >= 0:
            raise ValueError(f"adaptive.gain is {self.gain}: it must be at least 0")
        if not self.batch_growth >= 1:
            raise ValueError(f"adaptive.batch_growth is {self.batch_growth}: it must be at least 1")


def with_batch_sizes(
    stages: tuple[TrainingStage, ...], config: AdaptiveConfig, *, multiple: int
) -> tuple[TrainingStage, ...]:
    """Return the stages with a number in place of each automatic batch size, and the learning rate's factor for it.

    A batch is the last stage's, times the last stage's pixels over its own, `config.batch_growth` at most, rounded down
    to a `multiple` (the lanes).

    Raises:
        ValueError: the last stage's batch size is automatic as well.
    """
    base = stages[-1].batch_size
    if base == AUTO:
        raise ValueError("the last stage's batch_size is 0 (auto): give it a number, which the other stages' grow from")

    def resolved(stage: TrainingStage) -> TrainingStage:
        if stage.batch_size != AUTO:
            return stage
        growth = min(config.batch_growth, max(1.0, (stages[-1].image_size / stage.image_size) ** 2))
        batch = max(base, int(base * growth) // multiple * multiple)
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[config.batch_lr_rule]
        return replace(stage, batch_size=batch, lr_factor=stage.lr_factor * (batch / base) ** power)

    return tuple(resolved(stage) for stage in stages)


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


def on_ramp(span: tuple[float, float], index: int, count: int) -> float:
    """Return the value of one of `count` stages, linear from the first's to the last's; a single stage is the last."""
    return span[0] + (span[1] - span[0]) * (index / (count - 1) if count > 1 else 1.0)


def ramp(
    *,
    epochs: float,
    batch_size: int,
    image_size: tuple[int, int],
    randaugment_magnitude: tuple[float, float] = (0.0, 0.0),
    mixup_alpha: tuple[float, float] = (0.0, 0.0),
    cutmix_alpha: tuple[float, float] = (0.0, 0.0),
    dropout: tuple[float, float] = (0.0, 0.0),
    stochastic_depth: tuple[float, float] | None = None,
    num_stages: int = 4,
    size_multiple: int = 1,
) -> tuple[TrainingStage, ...]:
    """Make stages from (start, end) ranges, linear over the stages: Algorithm 1 of arXiv 2104.00298.

    The first stage has every range's start, the last its end; `epochs` (of the whole run) are shared out equally.
    Sizes are rounded to the nearest multiple of `size_multiple` pixels.
    """
    if num_stages < 1:
        raise ValueError(f"num_stages is {num_stages}: a ramp needs at least 1")
    return tuple(
        TrainingStage(
            image_size=round(on_ramp(image_size, index, num_stages) / size_multiple) * size_multiple,
            epochs=epochs / num_stages,
            batch_size=batch_size,
            randaugment_magnitude=on_ramp(randaugment_magnitude, index, num_stages),
            mixup_alpha=on_ramp(mixup_alpha, index, num_stages),
            cutmix_alpha=on_ramp(cutmix_alpha, index, num_stages),
            dropout=on_ramp(dropout, index, num_stages),
            stochastic_depth=None if stochastic_depth is None else on_ramp(stochastic_depth, index, num_stages),
        )
        for index in range(num_stages)
    )


@dataclass(frozen=True, slots=True)
class Segment:
    """The longest row of stages with the same worker count: one worker group, no restart inside."""

    first: int
    last: int
    num_workers: Workers


def segments(stages: tuple[TrainingStage, ...], num_workers: Workers) -> list[Segment]:
    """Cut stages into segments; `num_workers` is for stages that don't name their own number."""
    rows = []
    for workers, group in groupby(enumerate(stages), key=lambda item: item[1].workers(num_workers)):
        indices = [index for index, _ in group]
        rows.append(Segment(indices[0], indices[-1], workers))
    return rows

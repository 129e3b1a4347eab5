"""Stages made from a recipe's, which the predefined comparisons consist of."""

from __future__ import annotations

import random
from dataclasses import replace
from math import gcd

from pipeline.compare.config import CompareError
from pipeline.config import TrainConfig
from pipeline.schedule.stages import REGULARIZATION, TrainingStage

RANDOM_SIZES_SEED = 0
"""Which order random sizes come in: the same for every seed of training."""
RANDOM_SIZE_SHARE = 0.25
"""Steps of a stage that the comparison of single options trains at an earlier stage's size."""

Stages = tuple[TrainingStage, ...]


def fixed_stages(stages: Stages) -> Stages:
    """Return as many stages, all of the last one's size, batch and regularization, at the plain learning rate."""
    last = replace(one_size(last_of(stages)), lr_factor=1.0)  # factors are made for sizes that change
    return tuple(replace(last, epochs=stage.epochs, num_workers=stage.num_workers) for stage in stages)


def as_costly(stages: Stages, other: Stages) -> Stages:
    """Return the stages with more epochs, or fewer, all by one factor: as many images x pixels as the other stages."""
    factor = _cost(other) / _cost(stages)
    return tuple(replace(stage, epochs=round(stage.epochs * factor, 2)) for stage in stages)


def _cost(stages: Stages) -> float:
    """Return images x pixels, but for the samples of an epoch and the images' shape, which all stages share."""
    return sum(stage.epochs * stage.mean_pixels(1.0) for stage in stages)


def one_size(stage: TrainingStage) -> TrainingStage:
    """Return the stage with all steps at its image size, to which crops are resized."""
    return replace(stage, low_frequency_of=0, random_sizes=(), random_size_share=0.0)


def last_of(stages: Stages) -> TrainingStage:
    """Return the last stage, which others are to be made like."""
    if any(stage.fixres for stage in stages):
        raise CompareError("the recipe ends with fixres, which is no stage to train all others like: leave it out")
    return stages[-1]


def fixed_regularization(stages: Stages) -> Stages:
    """Return the stages with the last one's regularization in all of them."""
    last = {name: getattr(last_of(stages), name) for name in REGULARIZATION}
    return tuple(replace(stage, **last) for stage in stages)


def random_sizes(stages: Stages) -> Stages:
    """Return stages of an epoch each, of the recipe's sizes as often as there but in random order, and of its last
    regularization. The last one keeps its size, at which the run is then evaluated as the others are."""
    pieces: list[TrainingStage] = []
    for stage in fixed_regularization(stages):
        count = max(1, round(stage.epochs))
        pieces += [replace(stage, epochs=stage.epochs / count, lr_factor=1.0)] * count
    first = pieces[:-1]
    random.Random(RANDOM_SIZES_SEED).shuffle(first)
    return (*first, pieces[-1])


def smaller_crops(stage: TrainingStage, last: int, area: tuple[float, float]) -> TrainingStage:
    """Return a stage whose smallest crops show objects as large, in pixels, as the last stage's smallest do."""
    if stage.image_size >= last:
        return stage
    return replace(stage, crop_area=(area[0] * (stage.image_size / last) ** 2, area[1]))


def with_earlier_sizes(stages: Stages, index: int) -> TrainingStage:
    """Return a stage with `RANDOM_SIZE_SHARE` of its steps at sizes of the stages before it."""
    size = stages[index].image_size
    sizes = tuple(dict.fromkeys(one.image_size for one in stages[:index] if one.image_size != size))
    return replace(stages[index], random_sizes=sizes, random_size_share=RANDOM_SIZE_SHARE if sizes else 0.0)


def three_sizes(stages: Stages) -> list[int]:
    """Return the smallest and the last image size and one between, in the steps that the stages' sizes have, or in
    halves, quarters ... of them where no such step lies between."""
    sizes = [stage.image_size for stage in stages]
    first, last, step = min(sizes), sizes[-1], gcd(*sizes)
    while step > 1 and first + step >= last:
        step //= 2
    return [first, round((first + last) / 2 / step) * step, last]


def check_grows(base: TrainConfig) -> None:
    """Refuse a recipe whose last image size is the smallest.

    Raises:
        CompareError: it is.
    """
    sizes = [stage.image_size for stage in base.stages]
    if sizes[-1] == min(sizes):
        raise CompareError(
            f"the last stage of {base.name}, of {sizes[-1]} px, has no larger images than the others: take a recipe "
            "whose size grows"
        )

"""Batches of training, as a stage's loader makes them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from datasets.config import DataConfig
from datasets.loading.loader import Batches, build_loader
from datasets.loading.samples import View


def train_batches(config: DataConfig, **changes: Any) -> Batches:
    """Return the only worker's batches of 8 images of 32 px, without RandAugment, of the first 64 samples of seed 1.

    `changes` are fields of `View` and arguments of `build_loader`.
    """
    names = {one.name for one in fields(View)}
    view = {"image_size": 32, "seed": 1, "training": True}
    steps = {"batch_size": 8, "cursor": 0, "stop": 64, "rank": 0, "world_size": 1}
    view |= {name: value for name, value in changes.items() if name in names}
    return build_loader(config, View(**view), **steps | {n: v for n, v in changes.items() if n not in names})

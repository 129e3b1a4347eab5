"""What one core decodes of photographs of ImageNet's size, at the sizes of a recipe's stages, and what they weigh."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from datasets.config import DataConfig
from datasets.loading.loader import build_loader
from datasets.prepare.pyramid import write_copies
from datasets.prepare.sources.photographs import Photographs
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.copies import choose_copy, copy_folder
from datasets.shards.resolve import load_manifest
from jobs.benchmark.scaling.model import Points
from pipeline.schedule.stages import TrainingStage

SIDES = (160, 256)
"""Short sides of the copies that are made."""
_IMAGES = 256
_BATCH = 64
_LANES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """Speed and weight of images, from the shards (0) and from their copies, by short side."""

    points: Mapping[int, Points]
    """Seconds an image of one core, CPU time."""
    bytes_per_image: Mapping[int, float]
    """In shards."""


def measure_decoding(folder: Path, stages: Sequence[TrainingStage], batches: int) -> Decoding:
    """Time the loader at each stage's size, from the shards and from the copy that the stage would read.

    Args:
        folder: where the photographs are, as shards with copies; made there if missing.
        stages: their sizes and RandAugment.
        batches: timed at each size; one before isn't counted.
    """
    torch.set_num_threads(1)
    train = _photographs(folder)
    points: dict[int, dict[int, float]] = {side: {} for side in (0, *SIDES)}
    for stage in stages:
        for side in {0, choose_copy(SIDES, stage.image_size, stage.crop_area, DataConfig().crop_area)}:
            place = train / copy_folder(side) if side else train
            points[side][stage.image_size] = _seconds(place, stage, batches)
    weights = {side: load_manifest(str(train / copy_folder(side) if side else train)) for side in (0, *SIDES)}
    return Decoding(
        points={side: tuple(sorted(found.items())) for side, found in points.items() if found},
        bytes_per_image={side: manifest.num_bytes / manifest.num_samples for side, manifest in weights.items()},
    )


def _photographs(folder: Path) -> Path:
    train = folder / "train"
    if not (train / "manifest.json").exists():
        prepare(Photographs(train_images=_IMAGES, val_images=1), folder, WriterConfig(samples_per_shard=_IMAGES))
    if not set(SIDES) <= set(load_manifest(str(train)).copies):
        write_copies(train, SIDES, workers=WriterConfig().workers)
    return train


def _seconds(place: Path, stage: TrainingStage, batches: int) -> float:
    loader = build_loader(
        replace(DataConfig(), train=str(place), num_lanes=_LANES, loader_workers=0, pyramid=False),
        image_size=stage.image_size,
        batch_size=_BATCH,
        magnitude=stage.randaugment_magnitude,
        crop_area=stage.crop_area,
        seed=0,
        cursor=0,
        stop=(batches + 1) * _BATCH,
        rank=0,
        world_size=1,
    )
    ends = [time.process_time() for _ in loader]  # other processes disturb it less than the time that passes
    return statistics.median(after - before for before, after in itertools.pairwise(ends)) / _BATCH

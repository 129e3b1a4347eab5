"""The inputs of a step: one rank's batches for a stage, and a batch as the network takes it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from datasets.loading.batch import Batch
from datasets.loading.loader import Batches, build_loader
from datasets.shards.manifest import DatasetManifest
from datasets.transforms.mixing import mix
from datasets.transforms.shape import Shape
from datasets.transforms.spectrum import low_frequency, masks_at
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage
from pipeline.training.evaluation import normalized
from pipeline.training.task import Task


def stage_batches(
    config: TrainConfig,
    stage: TrainingStage,
    *,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
    manifest: DatasetManifest | None = None,
) -> Batches:
    """Return a rank's batches of a stage, from cursor `start` to `stop`, of a manifest that was read before or is now.

    Raises:
        DataError: shards that can't be read, or numbers that don't divide each other.
    """
    return build_loader(
        config.data,
        image_size=stage.low_frequency_of or stage.image_size,
        batch_size=stage.batch_size,
        magnitude=stage.randaugment_magnitude,
        seed=config.seed,
        cursor=start,
        stop=stop,
        rank=rank,
        world_size=world_size,
        crop_area=stage.crop_area,
        random_sizes=stage.random_sizes,
        random_size_share=stage.random_size_share,
        central=stage.fixres,
        manifest=manifest,
    )


def mixed_inputs(
    batch: Batch, stage: TrainingStage, *, config: TrainConfig, task: Task, device: torch.device, world_size: int
) -> tuple[Tensor, Tensor]:
    """Return normalized, mixed images float [B, 3, H, W] and soft targets, on the device."""
    if stage.low_frequency_of:
        batch = _smaller(batch, config.data.shape(stage.image_size), device)
    return mix(
        normalized(batch.images, config.trainer, device),
        task.targets(batch, device),
        mixup_alpha=stage.mixup_alpha,
        cutmix_alpha=stage.cutmix_alpha,
        seed=config.seed,
        stream_index=batch.stream_index,
        num_lanes_of_rank=config.data.num_lanes // world_size,
    )


def _smaller(batch: Batch, shape: Shape, device: torch.device) -> Batch:
    """Return a batch with the low frequencies of its images on the device, float32 [B, 3, H, W] of this shape."""
    images = low_frequency(batch.images.to(device, non_blocking=True), shape)
    return replace(batch, images=images, masks=None if batch.masks is None else masks_at(batch.masks, shape))

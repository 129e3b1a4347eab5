"""The inputs of a step: one rank's batches for a stage, and a batch as the network takes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.loading.batch import Batch
from datasets.loading.loader import Batches, build_loader
from datasets.loading.samples import View
from datasets.shards.manifest import DatasetManifest
from datasets.transforms.mixing import MixingRule
from datasets.transforms.shape import Shape
from datasets.transforms.spectrum import low_frequency, masks_at
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage
from pipeline.training.evaluation import compute_type, normalized
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
    view = View(
        image_size=stage.low_frequency_of or stage.image_size,
        magnitude=stage.randaugment_magnitude,
        seed=config.seed,
        crop_area=stage.crop_area,
        central=stage.fixres,
        training=True,
        random_sizes=stage.random_sizes,
        random_size_share=stage.random_size_share,
        mixing=MixingRule(
            mixup_alpha=stage.mixup_alpha,
            cutmix_alpha=stage.cutmix_alpha,
            num_lanes=config.data.num_lanes // world_size,
            shape=config.data.shape(stage.image_size) if stage.low_frequency_of else None,
        ),
    )
    return build_loader(
        config.data,
        view,
        batch_size=stage.batch_size,
        cursor=start,
        stop=stop,
        rank=rank,
        world_size=world_size,
        manifest=manifest,
    )


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One rank's inputs of a step, made a micro-batch at a time.

    Normalized and mixed they take four times the memory of the batch and more, in segmentation the more, the more
    classes there are. What a micro-batch is mixed with comes from the whole batch, so its values are the same however
    the batch is cut.
    """

    batch: Batch
    """As it was loaded, on the device."""
    stage: TrainingStage
    config: TrainConfig
    task: Task
    device: torch.device

    def __len__(self) -> int:
        return len(self.batch.labels)

    def parts(self, micro: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [b, C, H, W] and targets of at most `micro` samples each."""
        for start in range(0, len(self), micro):
            yield self.part(slice(start, start + micro))

    def part(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return normalized, mixed images [b, C, H, W], of the type that the network computes in, and soft targets."""
        images, targets = self._plain(rows)
        if self.batch.mixing is not None:
            mixing = self.batch.mixing.each(lambda one: one[rows])
            others, their_targets = self._plain(mixing.partners)
            images, targets = mixing.of_pixels(images, others), mixing.of_targets(targets, their_targets)
        # Autocast would do it again in each network, and the float32 would be held through the whole pass.
        return images.to(compute_type(self.config.trainer, self.device)), targets

    def _plain(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return normalized images, float32 [b, C, H, W], and soft targets, unmixed."""
        part = self.batch.rows(rows)
        if self.stage.low_frequency_of:
            part = _smaller(part, self.config.data.shape(self.stage.image_size))
        return normalized(part.images, self.config.trainer, self.device), self.task.targets(part, self.device)


def _smaller(batch: Batch, shape: Shape) -> Batch:
    """Return a batch with the low frequencies of its images, float32 [B, 3, H, W] of this shape."""
    masks = None if batch.masks is None else masks_at(batch.masks, shape)
    return replace(batch, images=low_frequency(batch.images, shape), masks=masks)

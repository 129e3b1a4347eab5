"""BatchNorm's running statistics, estimated again from training samples as evaluations see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from datasets.config import DataConfig
from datasets.loading.loader import Batches, build_plain_loader
from datasets.shards.manifest import DatasetManifest
from pipeline.training.batch_norm import reestimate
from pipeline.training.device import eagerly
from pipeline.training.distributed import rank_and_size
from pipeline.training.evaluation import autocast, check_damaged, logits_of, normalized
from pipeline.training.sync_batch_norm import unsynchronized
from pipeline.training_config import TrainerConfig


def reestimate_from_data(
    model: nn.Module,
    data: DataConfig,
    config: TrainerConfig,
    *,
    samples: int,
    image_size: int,
    seed: int,
    device: torch.device,
    heartbeat: Callable[[], None] = lambda: None,
    manifest: DatasetManifest | None = None,
) -> None:
    """Replace a model's running statistics by those of the sample order's first training samples.

    The result depends neither on earlier statistics nor, but for rounding, on the number of workers. A batch that does
    not fit into memory is taken in equal parts.

    Args:
        model: on `device`; in evaluation mode afterwards.
        data: whose `train` is read, with the evaluation's crop and without augmentation.
        config: normalization, precision, and the size of a batch.
        samples: how many; rounded up to whole batches.
        image_size: side of the images in pixels: that of the evaluations.
        seed: of the sample order.
        device: where the model is.
        heartbeat: called after each batch.
        manifest: of `data.train`, where it was read before.

    Raises:
        DataError: the samples can't be read, or too many of them are corrupt.
        MemoryLimitError: not even one fits into memory.
    """
    rank, world_size = rank_and_size()
    loader = build_plain_loader(
        data,
        image_size=image_size,
        batch_size=config.eval_batch_size,
        samples=samples,
        seed=seed,
        rank=rank,
        world_size=world_size,
        manifest=manifest,
    )

    most = _most_that_fit(model.eval(), loader, config, device)
    damaged: list[str] = []

    def inputs() -> Iterator[Tensor]:
        for batch in loader:
            damaged.extend(sample.message for sample in batch.damaged)
            if count := len(batch.images):
                for part in batch.images.tensor_split(math.ceil(count / most)):
                    yield normalized(part, config, device)
            heartbeat()

    with unsynchronized(model), autocast(config, device), eagerly(config):
        used = reestimate(model, inputs())
    check_damaged(used if rank == 0 else 0, damaged, url=data.train, max_damaged=data.max_damaged)


def _most_that_fit(model: nn.Module, loader: Batches, config: TrainerConfig, device: torch.device) -> int:
    """Return how many samples fit into a pass on this rank, by its first batch; 1 where it has none."""
    first = next((batch.images for batch in loader if len(batch.images)), None)
    if first is None:
        return 1
    with eagerly(config):
        return logits_of(model, first, config, device, len(first))[1]

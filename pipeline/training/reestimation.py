"""BatchNorm's running statistics, estimated again from training samples as evaluations see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from datasets.errors import DataError
from datasets.loading.loader import DataConfig, build_plain_loader
from datasets.shards.manifest import DatasetManifest
from pipeline.config import TrainerConfig
from pipeline.training.batch_norm import reestimate
from pipeline.training.distributed import rank_and_size
from pipeline.training.evaluation import autocast, normalized
from pipeline.training.sync_batch_norm import unsynchronized


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

    The result depends neither on earlier statistics nor, but for rounding, on the number of workers.

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
        DataError: the samples can't be read.
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

    def inputs() -> Iterator[Tensor]:
        for batch in loader:
            if len(batch.images):
                yield normalized(batch.images, config, device)
            heartbeat()

    with unsynchronized(model), autocast(config, device):
        if not reestimate(model, inputs()):
            raise DataError(f"{data.train}: not one of the {samples} samples for BatchNorm's statistics can be decoded")

"""How much shared memory (`/dev/shm`) the loader processes of a node's ranks take."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.config import TrainConfig
from pipeline.schedule.stages import worker_range

MARGIN = 1.25
"""For labels and what is being handed over."""
_BAND_BYTES = 4
"""Of a value as it is stored: loaders make it float32, whatever its type in the file is."""


def shared_memory_bytes(config: TrainConfig, ranks: int) -> float:
    """Return the bytes of the batches that the loaders of so many ranks on one node keep ready, at the largest.

    Each loader process keeps `data.prefetch_batches` batches, and the rank one more; the training loader keeps its own
    while the evaluation's runs. A batch is a rank's share of the stage's batch size: the fewer workers, the larger.
    """
    kept = config.data.num_loaders * config.data.prefetch_batches + 1
    if not config.data.num_loaders:
        return 0.0
    return MARGIN * kept * pixel_bytes(config) * (_training(config, ranks) + _evaluation(config, ranks))


def pixel_bytes(config: TrainConfig) -> int:
    """Return the bytes of a pixel in a batch: of its channels, and of its mask where it has one."""
    pixels = config.data.pixels
    return pixels.channels * (1 if pixels.is_rgb else _BAND_BYTES) + (config.kind == "segmentation")


def _training(config: TrainConfig, ranks: int) -> float:
    """Return the pixels of one training batch of each rank."""
    sizes = [0.0]
    for stage in config.stages:
        low, high = worker_range(config.workers_of(stage))
        pixels = math.prod(config.data.shape(max(stage.image_sizes)))
        counts = [count for count in config.possible_workers if low <= count <= high] or [low]
        sizes += [min(ranks, count) * stage.batch_size / count * pixels for count in counts]
    return max(sizes)


def _evaluation(config: TrainConfig, ranks: int) -> float:
    """Return the pixels of one evaluation batch of each rank."""
    side = max(config.trainer.eval_size(stage) for stage in config.stages)
    return float(ranks * config.trainer.eval_batch_size * math.prod(config.data.shape(side)))


def ranks_of(config: TrainConfig, resources: Mapping[str, float]) -> int:
    """Return how many of the run's workers fit on a node with these resources of Ray's."""
    each = config.cluster.resources_per_worker
    room = min(int(resources.get(name, 0) // amount) for name, amount in each.items())
    return min(room, max(config.worker_counts))

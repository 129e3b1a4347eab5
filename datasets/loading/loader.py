"""The loader: from the cursor to batches of samples, read by offset, decoded and augmented, one uint8 tensor each."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from datasets.cache.prefetch import Plan, Prefetcher
from datasets.cache.shard_cache import open_cache
from datasets.config import DataConfig, check_divisibility
from datasets.files.s3 import is_remote
from datasets.loading.batch import Batch
from datasets.loading.batch_sampler import EvalSteps, TrainSteps
from datasets.loading.corruption import CorruptionLog
from datasets.loading.processes import one_thread, unchanged
from datasets.loading.reader import SampleReader
from datasets.loading.sample_order import sample_order
from datasets.loading.samples import Request, Samples, View
from datasets.shards.copies import choose_copy, load_copies
from datasets.shards.manifest import DatasetManifest
from datasets.shards.resolve import check_unchanged, load_manifest
from datasets.transforms.shape import format_size

log = logging.getLogger(__name__)


def build_loader(
    config: DataConfig,
    view: View,
    *,
    batch_size: int,
    cursor: int,
    stop: int,
    rank: int,
    world_size: int,
    manifest: DatasetManifest | None = None,
) -> Batches:
    """Return one rank's batches of the steps at cursor, cursor + batch_size, ... below `stop`.

    Args:
        config: the data and its augmentation.
        view: how the samples are looked at; which copy of the shards it reads, its `short_side`, is chosen here.
        batch_size: G, samples of a step over all ranks.
        cursor: samples that the run consumed before; a multiple of the lanes.
        stop: cursor at which the stage ends.
        rank: of this worker.
        world_size: R, workers that share the step.
        manifest: of `config.train`, as a run read it when it started; None: as it is now.

    Raises:
        DataError: shards that can't be read, or numbers that don't divide each other.
    """
    assert view.training
    check_divisibility(config, batch_sizes=[batch_size], worker_counts=[world_size])
    manifest = _checked(manifest) or load_manifest(config.train, weights=config.train_weights)
    order = sample_order(config, manifest, seed=view.seed)
    steps = TrainSteps(
        order, manifest, batch_size=batch_size, cursor=cursor, stop=stop, rank=rank, world_size=world_size
    )
    view = replace(view, short_side=_copy_for(view, manifest, config))
    pool = _pool("train", manifest, config)
    return Batches(pool, view, steps, config, plan=steps.shards_ahead, cursor=cursor, step=batch_size)


def build_plain_loader(
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    samples: int,
    seed: int,
    rank: int,
    world_size: int,
    manifest: DatasetManifest | None = None,
) -> Batches:
    """Return one rank's share of the first training samples, as an evaluation sees them: its crop, no augmentation.

    They are the sample order's first `samples`, of a mixture's datasets in its shares, rounded up to whole batches,
    whose size is `batch_size` rounded up to the lanes; batch i goes to rank i % world_size, so the batches are the same
    for any number of workers. A sample that can't be decoded is left out and named in its batch, which may be empty
    then. `manifest` is that of `config.train`, where it was read before.

    Raises:
        DataError: shards that can't be read.
    """
    manifest = _checked(manifest) or load_manifest(config.train, weights=config.train_weights)
    # An evaluation's samples have the shares of the data, which a sampling by classes changes for training only.
    order = sample_order(replace(config, sampling="uniform"), manifest, seed=seed)
    size = math.ceil(batch_size / order.num_lanes) * order.num_lanes
    steps = TrainSteps(
        order,
        manifest,
        batch_size=size,
        cursor=rank * size,
        stop=samples,
        rank=0,
        world_size=1,
        every=world_size * size,
    )
    view = View(image_size=image_size, training=False)
    pool = _pool("plain", manifest, config)
    return Batches(pool, view, steps, config, plan=steps.shards_ahead, cursor=rank * size, step=world_size * size)


def build_eval_loader(
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    rank: int,
    world_size: int,
    manifest: DatasetManifest | None = None,
) -> Batches:
    """Return one rank's share of the validation set, cut into chunks of `batch_size` in the order of the shards.

    Chunk i goes to rank i % world_size, so the chunks are the same for any number of workers; the last one is short.
    A sample that can't be decoded is left out and named in its batch, which may be empty then. `manifest` is that of
    `config.val`, where it was read before.

    Raises:
        DataError: shards that can't be read.
    """
    manifest = _checked(manifest) or load_manifest(config.val)
    steps = EvalSteps(manifest, batch_size=batch_size, rank=rank, world_size=world_size)
    view = View(image_size=image_size, training=False)
    pool = _pool("eval", manifest, config)
    return Batches(pool, view, steps, config, plan=steps.shards_ahead, cursor=0, step=batch_size * world_size)


def _checked(manifest: DatasetManifest | None) -> DatasetManifest | None:
    if manifest is not None:
        check_unchanged(manifest)
    return manifest


def _copy_for(view: View, manifest: DatasetManifest, config: DataConfig) -> int:
    """Return the short side of the copy that a training view is read from; 0: the shards themselves."""
    if view.central or not _has_copies(config):
        return 0
    largest = max((view.image_size, *view.random_sizes))
    return choose_copy(manifest.copies, largest, view.crop_area, config.crop_area)


def _has_copies(config: DataConfig) -> bool:
    """Say whether smaller copies are read: they are made of RGB."""
    return config.pyramid and config.pixels.is_rgb


class _Requests:
    """The batch sampler of a pool: its steps change from stage to stage, while the loader processes stay."""

    view: View
    steps: TrainSteps | EvalSteps

    def __iter__(self) -> Iterator[Request]:
        for step in self.steps:
            yield Request(self.view.at(step.cursor), step.streams, step.ids, step.uses)


class _Pool:
    """The loader processes of one dataset; they stay over stages and evaluations."""

    def __init__(self, manifest: DatasetManifest, config: DataConfig, *, training: bool) -> None:
        manifests = load_copies(manifest, config.train) if training and _has_copies(config) else {0: manifest}
        cache = open_cache(config, [shard for part in manifests.values() for shard in part.shards])
        if cache is not None:
            cache.check_room([shard for shard in manifest.shards if shard.is_cached])
        self.cache, self.manifests, self.in_use = cache, manifests, False
        self.requests = _Requests()
        self.loader = DataLoader(
            Samples({side: SampleReader(part, cache) for side, part in manifests.items()}, config),
            batch_sampler=self.requests,  # type: ignore[arg-type]
            num_workers=config.num_loaders,
            collate_fn=unchanged,
            worker_init_fn=one_thread,
            # Each time that it is iterated it draws a number: of PyTorch's own generator that would be amid a step's
            # dropout, since the next stage's batches are made in a thread.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=config.prefetch_batches if config.num_loaders else None,
            persistent_workers=config.num_loaders > 0,
        )


_pools: dict[str, tuple[tuple[DatasetManifest, DataConfig], _Pool]] = {}


def _pool(role: str, manifest: DatasetManifest, config: DataConfig) -> _Pool:
    """Return the pool of a role's data: the one that is there, if it is free and of the same data."""
    key = manifest, config
    kept = _pools.get(role)
    if kept is not None and kept[0] == key and not kept[1].in_use:
        return kept[1]
    pool = _Pool(manifest, config, training=role == "train")
    if kept is None or not kept[1].in_use:
        _pools[role] = key, pool
    return pool


class Batches:
    """The batches of one stage or one evaluation; iterated once or more, always from its start."""

    def __init__(
        self,
        pool: _Pool,
        view: View,
        steps: TrainSteps | EvalSteps,
        config: DataConfig,
        *,
        plan: Plan,
        cursor: int,
        step: int,
    ) -> None:
        self._pool, self._view, self._steps, self._config = pool, view, steps, config
        self._plan, self._cursor, self._step = plan, cursor, step
        if view.short_side:
            size = format_size(view.image_size, config.aspect_ratio)
            log.info("images of %s px are read from the copy with short side %d", size, view.short_side)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def short_side(self) -> int:
        """Short side in pixels of the copy that is read; 0: the shards themselves."""
        return self._view.short_side

    def __iter__(self) -> Iterator[Batch]:
        pool = self._pool
        if pool.in_use:  # by another iterator: this one needs processes of its own
            pool = _Pool(pool.manifests[0], self._config, training=self._view.training)
        pool.in_use = True
        pool.requests.view, pool.requests.steps = self._view, self._steps
        prefetcher = self._prefetcher(pool)
        corruption = CorruptionLog()
        try:
            for number, batch in enumerate(pool.loader):
                if not isinstance(batch, Batch):
                    raise batch
                corruption.add(batch)
                if prefetcher is not None:
                    prefetcher.advance(self._cursor + number * self._step)
                yield batch
        finally:
            pool.in_use = False
            if prefetcher is not None:
                prefetcher.close()

    def _prefetcher(self, pool: _Pool) -> Prefetcher | None:
        shards = pool.manifests[self._view.short_side].shards
        if pool.cache is None or not any(is_remote(shard.url) for shard in shards):
            return None
        every = max(self._step, self._config.block_size * self._config.num_lanes)
        return Prefetcher(pool.cache, shards, self._plan, cursor=self._cursor, replan_every=every)

"""What a run reads and how an image becomes a sample, and the checks of it that the driver makes before any worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.cache import ShardCache, check_limit, default_folder
from datasets.errors import DataError
from datasets.order import SampleOrder
from datasets.shards import DatasetManifest, load_manifest

EvalCrop = Literal["central_below_320", "central", "whole"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards a run reads, in which order, and how an image becomes a training sample."""

    train: str = "data/train"
    """Training shards: a folder or s3://BUCKET/PREFIX, a brace list such as DIR/train-{000000..000009}.tar, or several
    of these joined by `::`."""
    val: str = "data/val"
    """Validation shards, as `train`."""
    train_weights: tuple[float, ...] = ()
    """A mix: one number for each part of `train`. An epoch takes round(weight * n) of a shard's n samples and goes on
    in the next epoch where it ended in this one, so that over the epochs all are used equally often. Empty: all of
    everything."""
    pyramid: bool = True
    """Read the smallest of the training shards' copies that a stage's image size allows, where there are any."""
    cache_dir: str = ""
    """Folder of the node's cache of shards in S3, shared by all its processes and by later runs. Empty: a folder below
    XDG_CACHE_HOME; `none`: no disk is used, every image is read from S3 by a range."""
    cache_gb: float = 100.0
    """Size that the cached shards may have together, in GB (10^9 bytes)."""
    num_lanes: int = 12
    """Fixed streams that an epoch is cut into. Worker counts must divide it; it must divide every batch size."""
    block_size: int = 256
    """Samples of one shard that stay together when an epoch is permuted: fewer where there are few samples, more where
    an epoch would have over a million of these blocks."""
    window_blocks: int = 64
    """Blocks that are shuffled together inside a lane."""
    loader_workers: int = 2
    """Loader processes for each training worker; 0 decodes in the training process itself."""
    prefetch_batches: int = 3
    """Batches that each loader process keeps ready."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the image's area that a training crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop."""
    flip: bool = True
    """Mirror half of the training images left to right; off where left and right differ, as in text."""
    randaugment_layers: int = 2
    """RandAugment operations for each image. Their magnitude is the stage's."""
    eval_crop: EvalCrop = "central_below_320"
    """What evaluation looks at: `central` square of size / (size + 32) of the short side, `whole` image squeezed to a
    square, or the first below 320 px and the second from there on."""

    max_pixels: int = 80_000_000
    """Largest image that is decoded, in pixels; a larger one counts as damaged (a decompression bomb)."""
    max_damaged: float = 0.01
    """Largest share of damaged samples; when there are more (and at least 10), the run ends with their list."""

    def __post_init__(self) -> None:
        for name in ("num_lanes", "block_size", "window_blocks", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("loader_workers", "randaugment_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged is {self.max_damaged}; it must be a share from 0 to 1")
        if self.max_pixels < 1:
            raise ValueError(f"data.max_pixels is {self.max_pixels}; it must be at least 1")
        if not self.cache_gb > 0:
            raise ValueError(f"data.cache_gb is {self.cache_gb}; it must be above 0")
        if any(not weight > 0 for weight in self.train_weights):
            raise ValueError(f"data.train_weights is {self.train_weights}; each must be above 0")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"data.crop_area is {self.crop_area}; it must be two shares with 0 < first <= second <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"data.crop_ratio is {self.crop_ratio}; it must be two ratios with 0 < first <= second")


def open_cache(config: DataConfig) -> ShardCache | None:
    """Return the node's shard cache, or None where the configuration says `none`.

    Raises:
        DataError: its folder can't be made.
    """
    folder = cache_folder(config)
    return None if folder is None else ShardCache(folder, round(config.cache_gb * 1e9))


def cache_folder(config: DataConfig) -> Path | None:
    """Return where the node's shard cache is, or None where the configuration says `none`."""
    if config.cache_dir == "none":
        return None
    return Path(config.cache_dir).expanduser().absolute() if config.cache_dir else default_folder()


def check_divisibility(config: DataConfig, *, batch_sizes: Iterable[int], worker_counts: Iterable[int]) -> None:
    """Check that the workers divide the lanes and the lanes divide every global batch.

    Raises:
        DataError: they don't; names the nearest numbers that do.
    """
    lanes = config.num_lanes
    for batch_size in batch_sizes:
        if batch_size % lanes or batch_size < 1:
            low = batch_size // lanes * lanes
            near = " or ".join(str(size) for size in (low, low + lanes) if size > 0)
            raise DataError(f"batch_size {batch_size} is no multiple of data.num_lanes={lanes}; the nearest are {near}")
    for workers in worker_counts:
        if workers < 1 or lanes % workers:
            allowed = ", ".join(str(count) for count in range(1, lanes + 1) if lanes % count == 0)
            raise DataError(f"{workers} workers can't share data.num_lanes={lanes} equally; use {allowed} workers")


def data_fingerprint(order: SampleOrder, manifest: DatasetManifest) -> str:
    """Return the digest of which samples a run uses and in which order: what a run that goes on must find again."""
    return hashlib.sha256(f"{order.fingerprint} {manifest.fingerprint}".encode()).hexdigest()[:32]


def check_data(
    config: DataConfig, *, batch_sizes: Iterable[int], worker_counts: Iterable[int]
) -> tuple[DatasetManifest, DatasetManifest]:
    """Find what is wrong with the data on the driver, before a worker starts; returns (train, val) manifests.

    Args:
        config: the data.
        batch_sizes: global batch of every stage.
        worker_counts: every number of workers that the run may use.

    Raises:
        DataError: numbers that don't divide each other; missing or changed shards, no manifest, no labels, labels out
            of range, other classes in val than in train, fewer samples than lanes; shards that need a larger cache, or
            one at all.
    """
    check_divisibility(config, batch_sizes=batch_sizes, worker_counts=worker_counts)
    train, val = load_manifest(config.train, weights=config.train_weights), load_manifest(config.val)
    for name, manifest in (("data.train", train), ("data.val", val)):
        _check_labels(name, manifest)
        _check_cache(config, manifest)
    if train.kind != val.kind:
        raise DataError(f"data.train is for {train.kind} and data.val for {val.kind}; prepare both at once")
    if train.classes != val.classes:
        raise DataError(
            f"data.val has other classes than data.train ({config.val}, {config.train}); prepare both at once"
        )
    if train.shard_counts.sum() < config.num_lanes:
        raise DataError(
            f"data.train has {train.shard_counts.sum()} samples for data.num_lanes={config.num_lanes}; use fewer lanes"
        )
    return train, val


def _check_cache(config: DataConfig, manifest: DatasetManifest) -> None:
    cached = [shard for shard in manifest.shards if shard.is_cached]
    packed = next((shard for shard in cached if shard.packed), None)
    if config.cache_dir != "none":
        check_limit(cached, round(config.cache_gb * 1e9))
    elif packed is not None:
        raise DataError(f"{packed.url}: a compressed shard is read through the cache; name a data.cache_dir")


def _check_labels(name: str, manifest: DatasetManifest) -> None:
    if not manifest.classes:
        raise DataError(
            f"{name}: the manifest of {manifest.shards[0].url} names no classes; prepare the shards with labels"
        )
    last = len(manifest.classes) - 1
    for shard in manifest.shards:
        if shard.labelled < shard.samples:
            what, file = ("mask", ".mask.png") if manifest.kind == "segmentation" else ("label", ".cls")
            raise DataError(
                f"{name}: {shard.url}: {shard.samples - shard.labelled} of {shard.samples} samples have no {what}; "
                f"each image needs a {file} file beside it"
            )
        if shard.max_label > last:
            raise DataError(
                f"{name}: {shard.url}: a label is {shard.max_label}, but the manifest's classes allow 0 to {last}"
            )

"""The driver's checks of the data before any worker starts, and the fingerprint that a resumed run must match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from datasets.cache.shard_cache import check_limit
from datasets.config import DataConfig, check_divisibility
from datasets.errors import DataError
from datasets.loading.sample_order import SampleOrder
from datasets.shards.manifest import DatasetManifest
from datasets.shards.resolve import load_manifest

TRUTH = {
    "classification": ("label", ".cls"),
    "segmentation": ("mask", ".mask.png"),
    "multilabel": ("list of labels", ".labels"),
    "regression": ("targets", ".targets"),
}
"""kind -> what each sample must have, and the extension of its file"""


def data_fingerprint(order: SampleOrder, manifest: DatasetManifest) -> str:
    """Return the digest of which samples a run uses and in which order: what a run that continues must find again."""
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
        check_pixels(name, config, manifest)
    if train.kind != val.kind:
        raise DataError(f"data.train is for {train.kind} and data.val for {val.kind}; prepare both together")
    if train.classes != val.classes:
        raise DataError(
            f"data.val has different classes than data.train ({config.val}, {config.train}); prepare both together"
        )
    if train.shard_counts.sum() < config.num_lanes:
        raise DataError(
            f"data.train has {train.shard_counts.sum()} samples for data.num_lanes={config.num_lanes}; use fewer lanes"
        )
    return train, val


def check_pixels(name: str, config: DataConfig, manifest: DatasetManifest) -> None:
    """Check that the images hold what they would be read as, as far as the manifest says.

    Raises:
        DataError: they don't; with the flags that are right.
    """
    if (found := manifest.pixels) is not None and found != config.pixels:
        raise DataError(
            f"{name}: the images hold {found}, but they would be read as {config.pixels}: use {' '.join(found.flags)}"
        )


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
            what, file = TRUTH[manifest.kind]
            raise DataError(
                f"{name}: {shard.url}: {shard.samples - shard.labelled} of {shard.samples} samples have no {what}; "
                f"each image needs a {file} file next to it"
            )
        if shard.max_label > last:
            raise DataError(
                f"{name}: {shard.url}: a label is {shard.max_label}, but the manifest's classes allow 0 to {last}"
            )

"""The classes of all samples, as the index has them, and how many samples an epoch has of each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from datasets.errors import DataError
from datasets.shards.index_rows import IndexRows
from datasets.shards.manifest import DatasetManifest, ShardInfo

_REQUESTS_AT_ONCE = 16
_INDEX_AGAIN = "; index again with `python -m jobs.index URL`"
_CURES = {
    "segmentation": " in a .cls file beside its mask, by which it is sampled: prepare your images again into another "
    "--out, which writes them, or leave data.sampling at uniform"
}


def labels_of(manifest: DatasetManifest) -> np.ndarray:
    """Return the class number of each sample, int32 [samples], by one pass over the whole index.

    In segmentation: of the class that it is sampled by, the rarest one in its mask.

    Raises:
        DataError: the index can't be read or doesn't fit its manifest, or a label is missing or none of the classes.
    """
    labels = _labels(manifest.shards)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(manifest.classes):
        raise DataError(
            f"{manifest.shards[0].index_folder}: not every sample has one of the manifest's "
            f"{len(manifest.classes)} classes{_CURES.get(manifest.kind, _INDEX_AGAIN)}"
        )
    return labels


@lru_cache(maxsize=2)
def _labels(shards: tuple[ShardInfo, ...]) -> np.ndarray:
    rows = IndexRows(DatasetManifest(shards=shards, classes=()))
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="labels") as threads:
        parts = list(threads.map(lambda shard: rows.of(shard)["label"], shards))
    labels = np.concatenate(parts)
    labels.flags.writeable = False
    return labels


def class_counts(manifest: DatasetManifest) -> Sequence[float]:
    """Return the samples that an epoch takes of each class, in a mixture by its weights.

    Raises:
        DataError: samples have several labels, and the manifest isn't of one whole folder; or as `labels_of`.
    """
    weighted = any(shard.weight != 1 for shard in manifest.shards)
    if manifest.class_counts and not weighted:
        return manifest.class_counts
    if manifest.kind != "classification":
        raise DataError(
            f"{manifest.shards[0].url}: the images of each class are counted for a whole folder only, not for some of "
            "its shards or a mixture: give the weights as numbers"
        )
    weights = np.repeat([shard.weight for shard in manifest.shards], [shard.samples for shard in manifest.shards])
    counts: list[float] = np.bincount(labels_of(manifest), weights=weights, minlength=len(manifest.classes)).tolist()
    return counts

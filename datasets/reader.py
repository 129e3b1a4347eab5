"""Samples by their global id: which shard, which bytes, one `pread`."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from datasets.shards import DataError, DatasetManifest, ShardIndex, index_shard

_OPEN_SHARDS = 128


class Sample(NamedTuple):
    """The bytes of one image with its label."""

    data: bytes
    label: int
    shard: int
    position: int


class SampleReader:
    """Reads samples by global id. Keeps the most recently used shards open and indexed; safe to fork while unused."""

    def __init__(self, manifest: DatasetManifest) -> None:
        self.manifest = manifest
        self._ends = np.cumsum(manifest.shard_counts)
        self._open: OrderedDict[int, tuple[int, ShardIndex]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Leave file descriptors and indexes behind when this goes to another process."""
        return {"manifest": self.manifest, "_ends": self._ends, "_open": OrderedDict()}

    def read(self, sample_id: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: no label or one out of range, or the shard is shorter than its index; names shard and key.
        """
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        descriptor, index = self._shard(shard)
        position = int(sample_id - (self._ends[shard] - self.manifest.shards[shard].samples))
        size = int(index.sizes[position])
        data = os.pread(descriptor, size, int(index.offsets[position]))
        if len(data) != size:
            raise DataError(f"{self.describe(sample_id)}: the shard is cut short; prepare it again")
        label = int(index.labels[position])
        if not 0 <= label < len(self.manifest.classes):
            raise DataError(f"{self.describe(sample_id)}: {self._label_problem(label)}")
        return Sample(data, label, shard, position)

    def describe(self, sample_id: int) -> str:
        """Name a sample by shard and key, for messages."""
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        position = int(sample_id - (self._ends[shard] - self.manifest.shards[shard].samples))
        return f"{self.manifest.shards[shard].url}: sample {self._shard(shard)[1].keys[position]!r}"

    def close(self) -> None:
        """Close every open shard."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def _label_problem(self, label: int) -> str:
        if label < 0:
            return "it has no label; each image needs a .cls file beside it"
        last = len(self.manifest.classes) - 1
        return f"its label is {label}, but the manifest's {last + 1} classes allow 0 to {last}"

    def _shard(self, shard: int) -> tuple[int, ShardIndex]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        info = self.manifest.shards[shard]
        index = index_shard(info.url)
        if len(index.keys) != info.samples:
            raise DataError(
                f"{info.url}: {len(index.keys)} samples, but its manifest says {info.samples}; prepare again"
            )
        if len(self._open) >= _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1][0])
        self._open[shard] = (os.open(info.url, os.O_RDONLY), index)
        return self._open[shard]

"""Samples by their global id: which shard, which bytes, one `pread`."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.errors import DataError
from datasets.shards import DatasetManifest, load_index
from datasets.tar_index import member_key

_OPEN_SHARDS = 256


class Sample(NamedTuple):
    """The bytes of one image with its label."""

    data: bytes
    label: int


class SampleReader:
    """Reads samples by global id, through the index that is mapped from the shards' folders. Picklable and forkable.

    Args:
        manifest: of the shards.

    Raises:
        DataError: a folder's index is missing or does not fit its manifest.
    """

    def __init__(self, manifest: DatasetManifest) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.manifest = manifest
        self._ends = np.cumsum(manifest.shard_counts)
        self._indexes: dict[Path, np.ndarray] = {}
        self._map()

    def __getstate__(self) -> DatasetManifest:
        return self.manifest

    def __setstate__(self, manifest: DatasetManifest) -> None:
        self.__init__(manifest)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def read(self, sample_id: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: no label or one out of range, or the shard is shorter than its index; names shard and key.
        """
        shard, offset, size, label = self._locate(sample_id)
        data = os.pread(self._descriptor(shard), size, offset)
        if len(data) != size:
            raise DataError(f"{self.describe(sample_id)}: the shard is cut short; write it again")
        if not 0 <= label < len(self.manifest.classes):
            raise DataError(f"{self.describe(sample_id)}: {self._label_problem(label)}")
        return Sample(data, label)

    def describe(self, sample_id: int) -> str:
        """Name a sample by shard and key, for messages."""
        shard, offset, _, _ = self._locate(sample_id)
        return f"{self.manifest.shards[shard].url}: sample {member_key(self._descriptor(shard), offset)!r}"

    def close(self) -> None:
        """Close every open shard."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _map(self) -> None:
        for shard in self.manifest.shards:
            folder = shard.path.parent
            if folder not in self._indexes:
                self._indexes[folder] = load_index(folder)
            if shard.first_row + shard.samples > len(self._indexes[folder]):
                raise DataError(f"{folder}: the index of samples is shorter than the manifest; write the shards again")

    def _locate(self, sample_id: int) -> tuple[int, int, int, int]:
        """Return (shard number, offset, size, label)."""
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        info = self.manifest.shards[shard]
        row = info.first_row + sample_id - (int(self._ends[shard]) - info.samples)
        offset, size, label = self._indexes[info.path.parent][row].tolist()
        return shard, offset, size, label

    def _label_problem(self, label: int) -> str:
        if label < 0:
            return "it has no label; each image needs a .cls file beside it"
        last = len(self.manifest.classes) - 1
        return f"its label is {label}, but the manifest's {last + 1} classes allow 0 to {last}"

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self.manifest.shards[shard].url, os.O_RDONLY)
        return self._open[shard]

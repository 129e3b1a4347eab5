"""Reads samples by their global id: one `pread`, or one ranged request while the shard is not in the cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from datasets.cache.shard_cache import ShardCache
from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import is_remote
from datasets.shards.index_rows import IndexRows
from datasets.shards.label_text import parse_labels, parse_targets
from datasets.shards.manifest import DatasetManifest, ShardInfo
from datasets.shards.resolve import INDEX_AGAIN
from datasets.shards.tar_index import HEADER_BYTES, key_of

_OPEN_SHARDS = 256
_REQUESTS_AT_ONCE = 16


class Sample(NamedTuple):
    """The bytes of one image with its label."""

    data: bytes
    label: int
    """class number; -1 in segmentation; of a multi-label sample the largest, -1 where it has none"""
    mask: bytes = b""
    """PNG of the mask in segmentation"""
    labels: tuple[int, ...] = ()
    """classes of a multi-label sample"""
    targets: tuple[float, ...] = ()
    """in regression"""


class Reader(Protocol):
    """Samples by number, wherever they lie."""

    @property
    def manifest(self) -> DatasetManifest:
        """What is known of them as a set: kind, classes, count."""
        ...

    def read(self, sample_id: int) -> Sample:
        """Return one sample; raises `DataError`."""
        ...

    def read_each(self, sample_ids: Sequence[int]) -> Iterator[Sample]:
        """Yield samples in the order of their ids; raises `DataError`."""
        ...

    def describe(self, sample_id: int) -> str:
        """Name a sample, for messages."""
        ...

    def key(self, sample_id: int) -> str:
        """Name a sample briefly: its key in a shard, or its file's name."""
        ...


class _Place(NamedTuple):
    """Where a sample is."""

    shard: int
    offset: int
    size: int
    label: int
    mask_offset: int = 0
    mask_size: int = 0


class SampleReader:
    """Reads samples by global id. Picklable and forkable.

    A shard of this machine, or in its cache, is read by offset; one in S3 that is not in the cache by ranges, so nobody
    waits for a whole shard. A compressed shard is unpacked into the cache first.

    Args:
        manifest: of the shards.
        cache: of this node; None reads everything in S3 by ranges.

    Raises:
        DataError: a folder's index is missing or does not fit its manifest, or compressed shards without a cache.
    """

    def __init__(self, manifest: DatasetManifest, cache: ShardCache | None = None) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.manifest: DatasetManifest = manifest
        self.cache = cache
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])
        self._rows = IndexRows(manifest)
        self._threads: tuple[int, ThreadPoolExecutor] | None = None
        packed = next((shard for shard in manifest.shards if shard.packed), None)
        if packed is not None and cache is None:
            raise DataError(f"{packed.url}: a compressed shard is read through the cache; name a data.cache_dir")

    def __getstate__(self) -> tuple[DatasetManifest, ShardCache | None]:
        return self.manifest, self.cache

    def __setstate__(self, state: tuple[DatasetManifest, ShardCache | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def read(self, sample_id: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: no label or one out of range, or the shard is shorter than its index; names shard and key. Or
                S3 can't be read.
        """
        return self._sample(self._locate(sample_id))

    def read_each(self, sample_ids: Sequence[int]) -> Iterator[Sample]:
        """Yield samples in the order of their ids; those that must be fetched are fetched together, before the first.

        What is on this machine is read when its turn comes, so that it is decoded while the processor's cache has it.
        """
        self._close_evicted()
        missing = {
            shard for shard in map(self._shard_of, sample_ids) if not self._rows.has(self.manifest.shards[shard])
        }
        if missing:
            list(self._pool().map(lambda shard: self._rows.of(self.manifest.shards[shard]), missing))
        places = [self._locate(sample_id) for sample_id in sample_ids]
        # Descriptors are opened and closed in this thread only; the others do nothing but ask S3.
        far = [place for place in places if self._descriptor(place.shard) is None]
        fetched = dict(zip(far, self._pool().map(self._sample_by_range, far), strict=True)) if far else {}
        for place in places:
            yield fetched.pop(place) if place in fetched else self._sample(place)

    def describe(self, sample_id: int) -> str:
        """Name a sample by shard and key, for messages."""
        return self._describe(self._locate(sample_id))

    def key(self, sample_id: int) -> str:
        """Return a sample's key."""
        return self._key(self._locate(sample_id))

    def close(self) -> None:
        """Close every open shard."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _shard_of(self, sample_id: int) -> int:
        return int(np.searchsorted(self._ends, sample_id, side="right"))

    def _locate(self, sample_id: int) -> _Place:
        shard = self._shard_of(sample_id)
        info = self.manifest.shards[shard]
        row = self._rows.of(info)[sample_id - (int(self._ends[shard]) - info.samples)]
        return _Place(shard, *row.tolist())

    def _check(self, place: _Place) -> None:
        if self.manifest.kind == "segmentation":
            if not place.mask_size:
                raise DataError(f"{self._describe(place)}: no mask; each image needs a .mask.png file next to it")
        elif self.manifest.kind == "multilabel":
            if not place.mask_offset:
                raise DataError(
                    f"{self._describe(place)}: no list of labels; each image needs a .labels file next to it"
                )
            if place.label >= len(self.manifest.classes):
                raise DataError(f"{self._describe(place)}: {self._label_problem(place.label)}")
        elif self.manifest.kind == "regression":
            if not place.mask_offset:
                raise DataError(f"{self._describe(place)}: no targets; each image needs a .targets file next to it")
        elif not 0 <= place.label < len(self.manifest.classes):
            raise DataError(f"{self._describe(place)}: {self._label_problem(place.label)}")

    def _describe(self, place: _Place) -> str:
        return f"{self.manifest.shards[place.shard].url}: sample {self._key(place)!r}"

    def _key(self, place: _Place) -> str:
        start = max(0, place.offset - HEADER_BYTES)
        # Threads that ask S3 come here, too; they open nothing.
        local = None if self._is_ranged(place.shard) else self._descriptor(place.shard)
        header = (
            self._range(place.shard, start, HEADER_BYTES) if local is None else os.pread(local, HEADER_BYTES, start)
        )
        return key_of(header)

    def _label_problem(self, label: int) -> str:
        if label < 0:
            return "it has no label; each image needs a .cls file next to it"
        last = len(self.manifest.classes) - 1
        return f"its label is {label}, but the manifest's {last + 1} classes allow 0 to {last}"

    def _sample(self, place: _Place) -> Sample:
        descriptor = self._descriptor(place.shard)
        if descriptor is None:
            return self._sample_by_range(place)
        self._check(place)
        data = os.pread(descriptor, place.size, place.offset)
        mask = os.pread(descriptor, place.mask_size, place.mask_offset) if place.mask_size else b""
        if len(data) != place.size or len(mask) != place.mask_size:
            raise DataError(f"{self._describe(place)}: the shard is cut short; write it again")
        return self._made(place, data, mask)

    def _sample_by_range(self, place: _Place) -> Sample:
        self._check(place)
        data = self._range(place.shard, place.offset, place.size)
        mask = self._range(place.shard, place.mask_offset, place.mask_size) if place.mask_size else b""
        return self._made(place, data, mask)

    def _made(self, place: _Place, data: bytes, truth: bytes) -> Sample:
        if self.manifest.kind == "regression":
            targets = parse_targets(truth, f"{self._describe(place)}: its targets are")
            if len(targets) != len(self.manifest.classes):
                raise DataError(f"{self._describe(place)}: it has {len(targets)} targets; {INDEX_AGAIN}")
            return Sample(data, place.label, targets=targets)
        if self.manifest.kind != "multilabel":
            return Sample(data, place.label, truth)
        labels = parse_labels(truth, "the labels are")
        if max(labels, default=-1) != place.label:
            raise DataError(f"{self._describe(place)}: its labels are not those of the index; {INDEX_AGAIN}")
        return Sample(data, place.label, labels=labels)

    def _range(self, shard: int, offset: int, size: int) -> bytes:
        info = self.manifest.shards[shard]
        assert self._is_ranged(shard), "the index of a compressed shard counts in its unpacked bytes"
        return s3.read(info.url, start=offset, length=size, etag=info.etag)

    def _descriptor(self, shard: int) -> int | None:
        """Return a descriptor of the shard's file; None where it can be read from S3 only."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        descriptor = self._opened(self.manifest.shards[shard])
        if descriptor is None:
            return None
        while len(self._open) >= _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor

    def _opened(self, info: ShardInfo) -> int | None:
        if info.packed:
            assert self.cache is not None
            return self.cache.open(info)
        if is_remote(info.url):
            return self.cache.open_present(info) if self.cache is not None else None
        try:
            return os.open(info.path, os.O_RDONLY)
        except FileNotFoundError:
            raise DataError(f"{info.path}: the shard is gone; write it again") from None

    def _is_ranged(self, shard: int) -> bool:
        """Say whether a shard may be read from S3 by ranges."""
        info = self.manifest.shards[shard]
        return is_remote(info.url) and not info.packed

    def _close_evicted(self) -> None:
        """Let go of shards that were evicted from the cache: their bytes are free only when nobody has them open."""
        for shard in [shard for shard, descriptor in self._open.items() if os.fstat(descriptor).st_nlink == 0]:
            os.close(self._open.pop(shard))

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None or self._threads[0] != os.getpid():  # threads don't survive a fork
            self._threads = os.getpid(), ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="read")
        return self._threads[1]

"""The rows of a dataset's index, shard by shard: mapped from a local file, or fetched from S3 when needed."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

import numpy as np

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import is_remote
from datasets.shards.manifest import HOW_TO_MAKE, MANIFEST_NAME, DatasetManifest, ShardInfo
from datasets.shards.tar_index import INDEX_DTYPE, MASK_DTYPE, rows_digest

_KEPT_SHARDS = 2048
_HEAD_BYTES = 512


class IndexRows:
    """Rows of the indexes beside a manifest's shards; memory is bounded however many shards there are.

    Args:
        manifest: of the shards.

    Raises:
        DataError: an index is missing, of another format, or does not fit its manifest.
    """

    def __init__(self, manifest: DatasetManifest) -> None:
        self._heads: dict[str, tuple[np.dtype, int]] = {}
        self._mapped: dict[str, np.ndarray] = {}
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._checked: set[str] = set()
        self._lock = threading.Lock()
        ends: dict[str, int] = {}
        for shard in manifest.shards:
            ends[shard.index_url] = max(ends.get(shard.index_url, 0), shard.first_row + shard.samples)
        for index, end in ends.items():
            if is_remote(index):
                length, self._heads[index] = _remote_head(index)
            else:
                self._mapped[index] = _mapped(index)
                length = len(self._mapped[index])
            if end > length:
                raise DataError(f"{index}: the index of samples is shorter than the manifest; {HOW_TO_MAKE}")

    def of(self, shard: ShardInfo) -> np.ndarray:
        """Return the rows of one shard, [samples]."""
        index = shard.index_url
        if index in self._mapped:
            mapped = self._mapped[index][shard.first_row : shard.first_row + shard.samples]
            if shard.url not in self._checked:
                _check_rows(shard, mapped)
                self._checked.add(shard.url)
            return mapped
        rows = self._kept.get(shard.url)
        if rows is None:
            rows = self._fetch(shard)
            with self._lock:
                if len(self._kept) >= _KEPT_SHARDS:
                    self._kept.popitem(last=False)
                self._kept[shard.url] = rows
        return rows

    def has(self, shard: ShardInfo) -> bool:
        """Say whether a shard's rows are here."""
        return shard.index_url in self._mapped or shard.url in self._kept

    def _fetch(self, shard: ShardInfo) -> np.ndarray:
        dtype, begin = self._heads[shard.index_url]
        start, length = begin + shard.first_row * dtype.itemsize, shard.samples * dtype.itemsize
        rows = np.frombuffer(s3.read(shard.index_url, start=start, length=length), dtype=dtype)
        _check_rows(shard, rows)
        return rows


def _check_rows(shard: ShardInfo, rows: np.ndarray) -> None:
    """Refuse an index that is damaged or another one: its labels may be of other samples."""
    if shard.rows and rows_digest(rows) != shard.rows:
        raise DataError(
            f"{shard.index_url}: its rows of {shard.name} are not those of {MANIFEST_NAME}: it is damaged, or not the "
            "index that was written with it; index again with `python -m jobs.index URL`"
        )


def _mapped(path: str) -> np.ndarray:
    """Map a local index, rows of `INDEX_DTYPE` or `MASK_DTYPE`; nothing is read before it is used."""
    try:
        # Not np.load: it opens a zip as well, as something else than an array.
        index = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable index of samples ({error}); {HOW_TO_MAKE}") from error
    _check_dtype(index.dtype, path)
    return index


def _remote_head(url: str) -> tuple[int, tuple[np.dtype, int]]:
    """Return the number of rows of an index in S3, and (type of a row, bytes before the first)."""
    try:
        stream = io.BytesIO(s3.read(url, length=_HEAD_BYTES, patience_s=s3.CHECK_PATIENCE_S))
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except s3.MissingError:
        raise DataError(f"{url}: no index of samples; {HOW_TO_MAKE}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{url}: not a readable index of samples ({error}); {HOW_TO_MAKE}") from error
    _check_dtype(dtype, url)
    return shape[0] if shape else 0, (dtype, stream.tell())


def _check_dtype(dtype: np.dtype, place: str) -> None:
    if dtype not in (INDEX_DTYPE, MASK_DTYPE):
        raise DataError(f"{place}: an index of another format; {HOW_TO_MAKE}")

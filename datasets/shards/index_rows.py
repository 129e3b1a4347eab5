"""The rows of a dataset's index, shard by shard: mapped from a local file, or fetched from S3 as they are needed."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import is_remote
from datasets.files.urls import join
from datasets.shards.manifest import HOW_TO_MAKE, MANIFEST_NAME, DatasetManifest, ShardInfo
from datasets.shards.tar_index import INDEX_DTYPE, INDEX_NAME, MASK_DTYPE, rows_digest

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
        for folder in dict.fromkeys(shard.index_folder for shard in manifest.shards):
            if is_remote(folder):
                length, self._heads[folder] = _remote_head(folder)
            else:
                self._mapped[folder] = load_index(folder)
                length = len(self._mapped[folder])
            last = max(shard.first_row + shard.samples for shard in manifest.shards if shard.index_folder == folder)
            if last > length:
                raise DataError(f"{folder}: the index of samples is shorter than the manifest; {HOW_TO_MAKE}")

    def of(self, shard: ShardInfo) -> np.ndarray:
        """Return the rows of one shard, [samples]."""
        folder = shard.index_folder
        if folder in self._mapped:
            mapped = self._mapped[folder][shard.first_row : shard.first_row + shard.samples]
            if shard.url not in self._checked:
                _check_rows(shard, mapped)
                self._checked.add(shard.url)
            return mapped
        rows = self._kept.get(shard.url)
        if rows is None:
            rows = self._fetch(shard, folder)
            with self._lock:
                if len(self._kept) >= _KEPT_SHARDS:
                    self._kept.popitem(last=False)
                self._kept[shard.url] = rows
        return rows

    def has(self, shard: ShardInfo) -> bool:
        """Say whether a shard's rows are here."""
        return shard.index_folder in self._mapped or shard.url in self._kept

    def _fetch(self, shard: ShardInfo, folder: str) -> np.ndarray:
        dtype, begin = self._heads[folder]
        start, length = begin + shard.first_row * dtype.itemsize, shard.samples * dtype.itemsize
        rows = np.frombuffer(s3.read(join(folder, INDEX_NAME), start=start, length=length), dtype=dtype)
        _check_rows(shard, rows)
        return rows


def _check_rows(shard: ShardInfo, rows: np.ndarray) -> None:
    """Refuse an index that was written again after its manifest was read: its labels may be of other samples."""
    if shard.rows and rows_digest(rows) != shard.rows:
        raise DataError(
            f"{join(shard.index_folder, INDEX_NAME)}: its rows of {shard.name} are not those of {MANIFEST_NAME}: "
            "indexed again meanwhile, or half written; start the command again, or index again"
        )


def load_index(folder: str | Path) -> np.ndarray:
    """Map the index in a local folder, rows of `INDEX_DTYPE` or `MASK_DTYPE`; nothing is read before it is used.

    Raises:
        DataError: it is missing or of another format.
    """
    path = Path(folder) / INDEX_NAME
    try:
        # Not np.load: it opens a zip as well, as something else than an array.
        index = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable index of samples ({error}); {HOW_TO_MAKE}") from error
    _check_dtype(index.dtype, str(path))
    return index


def _remote_head(folder: str) -> tuple[int, tuple[np.dtype, int]]:
    """Return the number of rows of an index in S3, and (type of a row, bytes before the first)."""
    url = join(folder, INDEX_NAME)
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

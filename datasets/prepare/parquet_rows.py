"""Parquet files with images in them, as Hugging Face lays them out: labels first, then images in the rows' order."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.tables import PARQUET_SUFFIX
from datasets.files.urls import folder_beside, open_shard
from datasets.prepare.files import marks_of
from datasets.prepare.layout import is_hidden
from datasets.prepare.parquet_columns import Columns

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile

_BLOCK_BYTES = 1 << 22
_ROWS_AT_ONCE = 32
_LABELS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class ParquetPart:
    """One file of a dataset."""

    name: str
    """relative to the dataset's folder"""
    file: RemoteFile
    mark: str
    """what tells that it has changed"""


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """What a row says beside its image."""

    number: int
    """from 1 on"""
    group: int
    """the row group that it lies in, which is read as a whole"""
    labels: tuple[str, ...] | None
    """names of its classes; None where it has none"""


def parquet_parts(place: str) -> list[ParquetPart]:
    """Return the Parquet files at a place, in folders of it too, in the order of their names.

    Raises:
        DataError: there are none.
    """
    files = [file for file in _files(place) if file.url.endswith(PARQUET_SUFFIX)]
    folder = folder_beside(place) if place.endswith(PARQUET_SUFFIX) and not Path(place).is_dir() else place.rstrip("/")
    names = {file: file.url.removeprefix(folder).lstrip("/") for file in files}
    files = [file for file in files if not any(is_hidden(part) for part in names[file].split("/"))]
    if not files:
        raise DataError(f"{place}: no {PARQUET_SUFFIX} file lies there; name the folder with train-*{PARQUET_SUFFIX}")
    marks = marks_of(file.url for file in files)
    return [ParquetPart(names[file], file, marks[file.url]) for file in files]


def schema_of(part: ParquetPart) -> Schema:
    """Return the names and types of a file's columns.

    Raises:
        DataError: it can't be read.
    """
    with _opened(part) as file:
        return file.schema_arrow


def labelled_rows(part: ParquetPart, columns: Columns) -> Iterator[LabelledRow]:
    """Yield what each row says: nothing, where masks are learned; a label of -1 is none, as in test sets without.

    Raises:
        DataError: a number that is no class's; names the row.
    """
    with _opened(part) as file:
        number = 0
        for group in range(file.num_row_groups):
            for value in _label_values(part, file, group, columns.label):
                number += 1
                try:
                    yield LabelledRow(number, group, columns.names_of(value))
                except IndexError:
                    raise DataError(f"{part.file.url}: row {number}: {columns.label} is {value}, and there are "
                                    f"{len(columns.names)} classes; correct it") from None  # fmt: skip


def image_of(part: ParquetPart, column: str, row: int) -> bytes:
    """Return the encoded image of a row, counted from 0; rows that are asked for in their order are read once.

    Raises:
        DataError: there is none in the row, or the file is damaged there.
    """
    value = _reader(part, column, os.getpid()).at(row)
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    path = value.get("path") if isinstance(value, dict) else None
    raise DataError(f"only the path {path} is in it, not the image" if path else "no image in it")


class _Reader:
    """A column of a file, a few rows at a time: a row group of images may be larger than memory."""

    def __init__(self, part: ParquetPart, column: str) -> None:
        self._file, self._column = _parquet_file(part), column
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._ends = [*itertools.accumulate(counts)]
        self._batches: Iterator[Any] = iter(())
        self._values: list[Any] = []
        self._first, self._group = 0, -1

    def at(self, row: int) -> object:
        import pyarrow as pa

        try:
            return self._at(row)
        except (pa.ArrowException, OSError) as error:
            self._group = -1  # what was begun can't be gone on with
            raise DataError(f"not readable ({_one_line(error)}); fetch the file again") from None

    def _at(self, row: int) -> object:
        group = bisect.bisect_right(self._ends, row)
        if group != self._group or row < self._first:
            self._batches = self._file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[group], columns=[self._column], use_threads=False
            )
            self._group, self._first, self._values = group, self._ends[group - 1] if group else 0, []
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            self._values = next(self._batches).column(0).to_pylist()
        return self._values[row - self._first]


@lru_cache(maxsize=2)  # images, and masks beside them
def _reader(part: ParquetPart, column: str, process: int) -> _Reader:
    """Open a file for this process alone: one that is forked would move its parent's place in it."""
    return _Reader(part, column)


def _files(place: str) -> list[RemoteFile]:
    if is_remote(place):
        found = s3.list_folder(folder_beside(place)) if place.endswith(PARQUET_SUFFIX) else s3.list_below(place)
        return [file for file in found if file.url == place or not place.endswith(PARQUET_SUFFIX)]
    if "://" in place:
        raise DataError(f"{place}: only paths and s3:// can be read; download it first")
    root = Path(place)
    if not root.exists():
        raise DataError(f"{place}: no such file or folder")
    paths = [root] if root.is_file() else sorted(path for path in root.rglob(f"*{PARQUET_SUFFIX}") if path.is_file())
    return [RemoteFile(str(path), path.stat().st_size, "") for path in paths]


def _parquet_file(part: ParquetPart) -> ParquetFile:
    import pyarrow as pa  # takes a while, which a command line should not
    import pyarrow.parquet as pq

    try:
        # With a buffer, pages are read one by one; without one a row group's whole column is.
        return pq.ParquetFile(open_shard(part.file, block_bytes=_BLOCK_BYTES), buffer_size=_BLOCK_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part.file.url}: not a readable Parquet file ({_one_line(error)}); fetch it again") from None


@contextmanager
def _opened(part: ParquetPart) -> Iterator[ParquetFile]:
    with _parquet_file(part) as file:
        yield file


def _label_values(part: ParquetPart, file: ParquetFile, group: int, column: str) -> Iterator[Any]:
    import pyarrow as pa

    if not column:
        yield from [()] * file.metadata.row_group(group).num_rows
        return
    try:
        for batch in file.iter_batches(_LABELS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part.file.url}: {column} is not readable ({_one_line(error)}); fetch it again") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

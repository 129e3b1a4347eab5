"""Tables by URL, CSV or Parquet, local or in S3: their columns, and their rows with what messages call each of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets.errors import DataError
from datasets.files.urls import read_file

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

PARQUET_SUFFIX = ".parquet"
CSV_SUFFIXES = (".csv", ".tsv", ".txt")
_DELIMITERS = ",;\t|"


class Row(NamedTuple):
    """What is asked for of a row."""

    place: str
    """`line 7` of a CSV file, `row 6` of a Parquet file: both count from 1, and the line of a CSV's header is 1"""
    cells: tuple[str | list[str], ...]
    """of each column, stripped; empty where there is nothing; a list where the column holds lists"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows can be read, more than once."""

    url: str
    columns: tuple[str, ...]
    """Names, in the table's order."""
    lists: frozenset[str]
    """The columns that hold lists: a Parquet file's alone."""
    _text: str = ""
    _delimiter: str = ","
    _parquet: ParquetFile | None = None

    def check(self, column: str, flag: str) -> None:
        """Refuse the name of a column that isn't there; `flag` names it.

        Raises:
            DataError: there is none of this name.
        """
        if column not in self.columns:
            there = ", ".join(self.columns)
            raise DataError(f"{self.url}: no column {column!r} in it, only {there}; name it with {flag}")

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows in their order, of each what these columns hold.

        Raises:
            DataError: a row that doesn't fit the header, or a damaged file; names the row.
        """
        return self._csv_rows(columns) if self._parquet is None else self._parquet_rows(columns, self._parquet)

    def _csv_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        places = [self.columns.index(name) for name in columns]
        reader = _reader(self._text, self._delimiter)
        try:
            next(reader)
            for row in reader:
                if row and len(row) != len(self.columns):
                    raise DataError(f"{self.url}: line {reader.line_num}: {len(row)} fields, the header has "
                                    f"{len(self.columns)}; quote what has a {self._delimiter!r} in it")  # fmt: skip
                if row:
                    yield Row(f"line {reader.line_num}", tuple(row[place].strip() for place in places))
        except csv.Error as error:
            raise DataError(f"{self.url}: line {reader.line_num}: {error}") from None

    def _parquet_rows(self, columns: Sequence[str], file: ParquetFile) -> Iterator[Row]:
        import pyarrow as pa

        number = 0
        try:
            for batch in file.iter_batches(columns=[*dict.fromkeys(columns)]):
                for cells in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    number += 1
                    yield Row(f"row {number}", tuple(map(cell_text, cells)))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.url}: row {number + 1}: not readable ({error}); write it again") from None


def is_table(url: str) -> bool:
    """Say whether a name is that of a table."""
    return url.endswith((PARQUET_SUFFIX, *CSV_SUFFIXES))


def open_table(url: str) -> Table:
    """Open a table: a CSV file in UTF-8 with a header and commas, semicolons, tabs or bars, or NAME.parquet.

    Raises:
        DataError: there is none, or it can't be read.
    """
    try:
        data = read_file(url)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else f"it can't be read ({error.strerror})"
        raise DataError(f"{url}: {reason}") from None
    return _parquet_table(url, data) if url.endswith(PARQUET_SUFFIX) else _csv_table(url, data)


def _csv_table(url: str, data: bytes) -> Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        names = tuple(name.strip() for name in next(_reader(text, delimiter), []))
    except csv.Error as error:
        raise DataError(f"{url}: line 1: {error}") from None
    return _checked(Table(url, names, frozenset(), _text=text, _delimiter=delimiter))


def _parquet_table(url: str, data: bytes) -> Table:
    import pyarrow as pa  # takes a while, which a command line should not
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{url}: not a readable Parquet file ({error}); write it again") from None
    lists = frozenset(
        field.name
        for field in schema
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type)
    )
    return _checked(Table(url, tuple(schema.names), lists, _parquet=file))


def _checked(table: Table) -> Table:
    if not any(table.columns):
        raise DataError(f"{table.url}: it is empty; the first line names the columns, as in path,label")
    for name in table.columns:
        if table.columns.count(name) > 1:
            raise DataError(f"{table.url}: two columns have the name {name!r}; rename one")
    return table


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def cell_text(value: object) -> str | list[str]:
    """Return what a value of a Parquet file would be in a CSV file; a list of these for a list."""
    if isinstance(value, list):
        return [str(cell_text(part)) for part in value]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()

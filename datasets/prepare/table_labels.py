"""What the cells of a table's row say of its image: one class, several, or the file of a mask."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets.errors import DataError
from datasets.files.tables import Table
from datasets.shards.label_text import LARGEST_TARGET

_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
_Cells = Sequence[str | list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """Which columns of a table say what."""

    path: str = "path"
    """The image: a path relative to the table's folder (or another), an absolute one, or s3://BUCKET/KEY."""
    label: str = "label"
    """Its class, or its classes where the column holds lists or there is a separator."""
    separator: str = ""
    """Text between the classes of an image."""
    flags: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each class, in place of `label`: names or patterns."""
    mask: str = ""
    """The file of its mask, in place of `label`."""
    targets: tuple[str, ...] = ()
    """Its numbers, in place of `label`."""
    split: str = "split"
    """train, val or test, where the table has such a column; empty: it isn't looked at."""


@dataclass(frozen=True, slots=True)
class LabelReader:
    """Which columns hold the labels, and how they are read."""

    columns: tuple[str, ...]
    kind: str
    """of the manifest"""
    read: Callable[[_Cells], tuple[str, ...]]
    """cells of these columns -> class names, each once, or the mask's path alone, or NAME=NUMBER of each target; raises
    ValueError"""
    classes: tuple[str, ...] = ()
    """Class names, where the columns tell them."""

    def of(self, table: Table, place: str, cells: _Cells) -> tuple[str, ...]:
        """Return the labels of the row at `place`, whose cells begin with these columns.

        Raises:
            DataError: they can't be understood; names the row.
        """
        try:
            return self.read(cells[: len(self.columns)])
        except ValueError as error:
            raise DataError(f"{table.url}: {place}: {error}") from None


NO_LABELS = LabelReader((), "", lambda cells: ())
"""Reads nothing but where the images are."""


def label_reader(table: Table, columns: TableColumns) -> LabelReader:
    """Choose how the labels of a table are read, by the columns that a user named.

    Raises:
        DataError: no such column.
    """
    table.check(columns.path, "--path-column")
    if columns.split not in ("", "split"):
        table.check(columns.split, "--split-column")
    if columns.mask:
        table.check(columns.mask, "--mask-column")
        return LabelReader((columns.mask,), "segmentation", lambda cells: (_single(columns.mask, cells[0]),))
    if names := columns.targets:
        for name in names:
            table.check(name, "--targets")
        return LabelReader(names, "regression", lambda cells: _numbers(names, cells), names)
    if columns.flags:
        names = _matching(table, columns.flags, used=(columns.path, columns.split or "split"))
        return LabelReader(names, "multilabel", lambda cells: _flagged(names, cells), names)
    table.check(columns.label, "--label-column")
    if columns.label in table.lists:
        return LabelReader((columns.label,), "multilabel", lambda cells: _unique(cells[0]))
    if columns.separator:
        return LabelReader(
            (columns.label,), "multilabel", lambda cells: _unique(str(cells[0]).split(columns.separator))
        )
    return LabelReader((columns.label,), "classification", lambda cells: (_single(columns.label, cells[0]),))


def _numbers(names: Sequence[str], cells: _Cells) -> tuple[str, ...]:
    for name, cell in zip(names, cells, strict=True):
        try:
            number = float(str(cell))
        except ValueError:
            number = math.nan
        if not abs(number) <= LARGEST_TARGET:
            wrong = f"beyond {LARGEST_TARGET:.2g}" if math.isfinite(number) else "not a number"
            raise ValueError(f"the column {name!r} holds {cell!r}, {wrong}; correct it, or remove the row")
    return tuple(f"{name}={float(str(cell))!r}" for name, cell in zip(names, cells, strict=True))


def _single(column: str, cell: str | list[str]) -> str:
    if not cell or isinstance(cell, list):
        raise ValueError(f"the column {column!r} is empty; fill it, or remove the row")
    return cell


def _unique(labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for label in labels if (name := label.strip())))


def _flagged(names: tuple[str, ...], cells: _Cells) -> tuple[str, ...]:
    for name, cell in zip(names, cells, strict=True):
        if str(cell).lower() not in _FLAGS:
            raise ValueError(f"the column {name!r} holds {cell!r}; write 1 where the image is of this class, else 0")
    return tuple(name for name, cell in zip(names, cells, strict=True) if _FLAGS[str(cell).lower()])


def _matching(table: Table, patterns: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in patterns:
        own = [name for name in table.columns if fnmatch.fnmatchcase(name, pattern) and name not in used]
        if not own:
            table.check(pattern, "--label-columns")
        found += own
    return tuple(dict.fromkeys(found))

"""What the cells of a table's row say of its image: one class, several, or the file of a mask."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets.errors import DataError
from datasets.files.tables import Table

_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
_Cells = Sequence[str | list[str]]


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


def label_reader(
    table: Table,
    *,
    column: str,
    separator: str,
    columns: Sequence[str],
    mask_column: str,
    targets: Sequence[str],
    used: Sequence[str],
) -> LabelReader:
    """Choose how labels are read.

    Args:
        table: with the labels.
        column: the one with the label or labels.
        separator: of labels in that column; empty: there is one label, or the column holds lists.
        columns: patterns of names of columns, one for each class, that hold 0 or 1.
        mask_column: the one with the path of a mask.
        targets: names of columns of numbers, for regression.
        used: columns that hold something else, which a pattern doesn't mean.

    Raises:
        DataError: no such column.
    """
    if mask_column:
        table.check(mask_column, "--mask-column")
        return LabelReader((mask_column,), "segmentation", lambda cells: (_single(mask_column, cells[0]),))
    if targets:
        for name in targets:
            table.check(name, "--targets")
        return LabelReader(tuple(targets), "regression", lambda cells: _numbers(targets, cells), tuple(targets))
    if columns:
        names = _matching(table, columns, used)
        return LabelReader(names, "multilabel", lambda cells: _flagged(names, cells), names)
    table.check(column, "--label-column")
    if column in table.lists:
        return LabelReader((column,), "multilabel", lambda cells: _unique(cells[0]))
    if separator:
        return LabelReader((column,), "multilabel", lambda cells: _unique(str(cells[0]).split(separator)))
    return LabelReader((column,), "classification", lambda cells: (_single(column, cells[0]),))


def _numbers(names: Sequence[str], cells: _Cells) -> tuple[str, ...]:
    for name, cell in zip(names, cells, strict=True):
        try:
            number = float(str(cell))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"the column {name!r} holds {cell!r}, not a number; correct it, or remove the row")
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

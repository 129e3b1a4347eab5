"""The rows of a table of images -> items: paths, splits and labels, with the row in each error."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.tables import Table
from datasets.prepare.layout import ROLES, LeftOut
from datasets.prepare.source import Item
from datasets.prepare.table_labels import LabelReader, TableColumns
from datasets.shards.class_names import class_numbers, shown_classes, sorted_names
from datasets.shards.given_classes import class_names

_SPLITS = {name: split for split, names in ROLES.items() for name in names}


class ImageRow(NamedTuple):
    """A row that is an image."""

    place: str
    """in the table, as `line 7`"""
    path: str
    labels: tuple[str, ...]
    """names of its classes; with masks, its mask's path alone; with targets, NAME=NUMBER of each"""
    split: str


def image_rows(
    table: Table, reader: LabelReader, columns: TableColumns, *, otherwise: str, left_out: LeftOut
) -> list[ImageRow]:
    """Read all rows; one that says again what another says is left out.

    Args:
        table: of the images.
        reader: of its labels.
        columns: of the paths and splits.
        otherwise: the split of all rows, where no column says it.
        left_out: takes what is left out.

    Raises:
        DataError: there are none, or one can't be understood, or contradicts another; names the row.
    """
    found = list(_once(table, each_row(table, reader, columns, otherwise=otherwise), left_out))
    if not found:
        raise DataError(f"{table.url}: no rows in it, only the header")
    return found


def each_row(table: Table, reader: LabelReader, columns: TableColumns, *, otherwise: str) -> Iterator[ImageRow]:
    """Yield the rows one by one, as `image_rows` reads them, also those that say the same again.

    Raises:
        DataError: one can't be understood; names the row.
    """
    has_splits = bool(columns.split) and columns.split in table.columns
    for place, cells in table.rows((*reader.columns, columns.path, *([columns.split] if has_splits else []))):
        path, split = str(cells[len(reader.columns)]), str(cells[-1]).lower() if has_splits else otherwise
        where = f"{table.url}: {place}"
        if not path:
            raise DataError(f"{where}: the column {columns.path!r} is empty; fill it, or remove the row")
        if "://" in path and not is_remote(path):
            raise DataError(f"{where}: {path}: only paths and s3:// can be read; download it first")
        if split not in _SPLITS:
            raise DataError(f"{where}: the column {columns.split!r} holds {cells[-1]!r}; write train, val or test, or "
                            "leave the column aside with --split-column ''")  # fmt: skip
        name = path if "://" in path else posixpath.normpath(path)
        yield ImageRow(place, name, reader.of(table, place, cells), _SPLITS[split])


def labelled_items(
    table: Table, reader: LabelReader, rows: Sequence[ImageRow], marks: dict[str, str], given: str
) -> tuple[tuple[str, ...], list[Item]]:
    """Return the class names, and an item for each row.

    Args:
        table: of the rows.
        reader: of its labels.
        rows: with classes, not with masks.
        marks: path -> what tells that the file has changed.
        given: names of the classes, as `class_names` takes them; empty: those found.

    Raises:
        DataError: a label that is none of the classes; names the row.
    """
    found = {label for row in rows for label in row.labels}
    if not found:
        raise DataError(f"{table.url}: no row has a label; name their column with --label-column")
    classes = class_names(given) if given else reader.classes or sorted_names(found)
    numbers, is_one = class_numbers(classes), reader.kind == "classification"
    items: list[Item] = []
    for row in rows:
        if unknown := [label for label in row.labels if label not in numbers]:
            raise DataError(f"{table.url}: {row.place}: the label {unknown[0]!r} is none of the {len(classes)} classes "
                            f"({shown_classes(classes)}); correct it, or add it to --classes")  # fmt: skip
        own = tuple(sorted({numbers[label] for label in row.labels}))
        label, labels = (own[0], None) if is_one else (-1, own)
        items.append(Item(row.path, label, marks[row.path], labels, row=row.place))
    return classes, items


def target_items(rows: Sequence[ImageRow], marks: dict[str, str]) -> list[Item]:
    """Return an item for each row of a table with targets."""
    numbers = [tuple(float(label.rpartition("=")[2]) for label in row.labels) for row in rows]
    return [
        Item(row.path, -1, marks[row.path], targets=own, row=row.place) for row, own in zip(rows, numbers, strict=True)
    ]


def by_split(table: Table, rows: Sequence[ImageRow], items: Sequence[Item], alone: str) -> dict[str, tuple[Item, ...]]:
    """Return the items of each split that there is, or of one alone.

    Raises:
        DataError: none is of that one, or for training.
    """
    # In another order the table says the same.
    pairs = sorted(zip(rows, items, strict=True), key=lambda pair: pair[0].path)
    splits = {split: own for split in ROLES if (own := tuple(item for row, item in pairs if row.split == split))}
    check_split(table, alone or "train", splits)
    return {alone: splits[alone]} if alone else splits


def check_split(table: Table, needed: str, splits: Collection[str]) -> None:
    """Refuse a table without rows of a split; `splits` are those that it has.

    Raises:
        DataError: it has none.
    """
    if needed not in splits:
        raise DataError(f"{table.url}: no row is of the split {needed}, only of {' and '.join(splits)}; add such rows, "
                        "or leave the column aside with --split-column ''")  # fmt: skip


def check_trained(url: str, classes: Sequence[str], splits: dict[str, tuple[Item, ...]], *, named: bool) -> None:
    """Refuse a single class, and classes that can't be learned unless a user named them; `url` is of the rows.

    Raises:
        DataError: such a class.
    """
    trained = {item.label for item in splits["train"]}
    if len(trained) < 2:
        raise DataError(f"{url}: only {classes[next(iter(trained))]!r} has images for training; two classes at "
                        "least are needed")  # fmt: skip
    for split, items in splits.items():
        for item in items:
            if item.label not in trained and not named:
                raise DataError(f"{url}: {item.row}: class {classes[item.label]!r} has images in {split}, but "
                                "none for training; correct it, or name all classes with --classes")  # fmt: skip


def _once(table: Table, rows: Iterable[ImageRow], left_out: LeftOut) -> Iterator[ImageRow]:
    first: dict[str, ImageRow] = {}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        other = first.setdefault(row.path, row)
        if {*other.labels} != {*row.labels}:
            both = ", here ".join(" ".join(one.labels) or "nothing" for one in (other, row))
            raise DataError(f"{table.url}: {row.place}: {row.path} has another label in {other.place} ({both}); keep "
                            "one of these rows")  # fmt: skip
        if (row.path, row.split) not in seen:
            seen.add((row.path, row.split))
            yield row
        else:
            left_out.add("in the table twice", f"{row.place}: {row.path}")

"""Parquet files with the images in them, as Hugging Face lays datasets out; its library isn't needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import tyro

from datasets.errors import PLACE_ERRORS, DataError
from datasets.prepare.encode import stored
from datasets.prepare.layout import ROLES, LeftOut
from datasets.prepare.mask_classes import MaskClasses, check_mask_flags, numbered_mask, remembered_mask_classes
from datasets.prepare.parquet_columns import Columns, find_columns
from datasets.prepare.parquet_rows import LabelledRow, ParquetPart, image_of, labelled_rows, parquet_parts, schema_of
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.split import VAL_SHARE, check_share, check_unused, groups_of, hold_out
from datasets.prepare.table_rows import check_trained
from datasets.shards.class_names import class_numbers, shown_classes, sorted_names
from datasets.shards.given_classes import class_names

_Rows = dict[str, list[tuple[ParquetPart, LabelledRow]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class HfParquet(Source):
    """Parquet files with images and labels in them, as Hugging Face lays them out: train-00000-of-00002.parquet, ..."""

    name: ClassVar[str] = "parquet"
    places: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Annotated[str, tyro.conf.Positional]
    """Folder with the files (in folders of it too), or one file; a path or s3://. A file's split is what its name
    begins with, or its folder's: train, validation, test, ...; where none says any, all is for training."""
    image_column: str = ""
    """Column of the images, bytes or a struct with `bytes`; empty: the only such one."""
    label_column: str = ""
    """Column of the labels: numbers of classes, names, or lists of these; empty: the only one whose classes are named
    in the file, or `label`."""
    mask_column: str = ""
    """Column of the masks, as images, in place of labels: segmentation. Needs --classes."""
    classes: str = ""
    """Class names in the order of their numbers: `cat,dog`, a file with a name a line or a JSON list, a folder of
    prepared data, or a run's name or folder: those that it was trained on. Empty: as the file says, or the labels
    found, sorted. With --mask-column as `prepare masks` takes it."""
    ignore: tuple[str, ...] = ()
    """With --mask-column: values of pixels that are neither trained nor evaluated, or names of classes that are
    none."""
    binary: bool = False
    """With --mask-column: the masks are black and white; from 128 on the second class, below it the first."""
    split: Literal["", "train", "val", "test"] = ""
    """Write this split alone: its files, or all where none says a split."""
    val_share: float = VAL_SHARE
    """Share of each class held out for validation if no file is of the split val; with masks, of all."""

    def __post_init__(self) -> None:
        check_share(self.val_share)
        check_mask_flags(mask_column=self.mask_column, classes=self.classes, ignore=self.ignore, binary=self.binary)
        if self.mask_column and self.label_column:
            raise ValueError("--label-column and --mask-column: name the one that is to be learned")

    @property
    def mask_classes(self) -> MaskClasses | None:
        """What the masks' pixels mean, with --mask-column."""
        if not self.mask_column:
            return None
        return remembered_mask_classes(self.classes, self.ignore, binary=self.binary)

    def plan(self) -> Plan:
        """Read the labels of all rows; images are read when they are written.

        Raises:
            DataError: no such files or columns, or a label that is no class; names file and row.
        """
        left_out = LeftOut()
        parts = _splits(self.folder, self.split, left_out)
        columns = self._columns(next(iter(parts.values()))[0])
        rows = {split: list(self._rows(own, columns, left_out)) for split, own in parts.items()}
        kind = "segmentation" if self.mask_column else "multilabel" if columns.several else "classification"
        classes = self._classes(columns, rows)
        splits = {split: items for split, own in rows.items() if (items := tuple(self._items(own, classes, kind)))}
        if (needed := self.split or "train") not in splits:
            raise DataError(f"{self.folder}: no row of the split {needed} has a label; name their column with "
                            "--label-column, or another --split")  # fmt: skip
        if kind == "classification" and not self.split:
            check_trained(self.folder, classes, splits, named=bool(self.classes or columns.names))
        notes: tuple[str, ...] = ()
        if "val" not in splits and not self.split:
            notes = (f"val is {self.val_share:.0%} of the training rows: there is no file for it",)
            splits |= hold_out(splits["train"], self.val_share, groups_of(splits["train"]), self.folder)
        else:
            check_unused(self.val_share, self.folder)
        return Plan(
            classes=classes,
            splits={split: splits[split] for split in ROLES if split in splits},
            kind=kind,
            is_one_split=bool(self.split),
            is_listed=True,
            left_out=left_out.reasons,
            notes=notes,
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one image's bytes as they are.

        Raises:
            DataError: no image that can be read; names file and row.
        """
        part, row = self._place(item)
        try:
            return stored(image_of(part, self._columns(part).image, row), part.name)
        except PLACE_ERRORS:
            raise
        except ValueError as error:
            raise DataError(f"{part.file.url}: row {row + 1}: {error}") from None

    def mask(self, split: str, item: Item, image: bytes) -> bytes:
        """Return one mask as a grey PNG of class numbers, 255 for pixels that are ignored.

        Raises:
            DataError: a mask that can't be read, of another size than its image, or with pixels of no class.
        """
        assert self.mask_classes is not None
        part, row = self._place(item)
        try:
            mask = image_of(part, self.mask_column, row)
            return numbered_mask(self.mask_classes, mask, image, item.name)
        except PLACE_ERRORS:
            raise
        except (ValueError, OSError) as error:
            raise DataError(f"{part.file.url}: row {row + 1}: {self.mask_column}: {error}") from error

    def _place(self, item: Item) -> tuple[ParquetPart, int]:
        name, _, row = item.name.rpartition(":")
        return _by_name(self.folder)[name], int(row) - 1

    def _columns(self, part: ParquetPart) -> Columns:
        return _columns_of(part, self.image_column, self.label_column, self.mask_column)

    def _classes(self, columns: Columns, rows: _Rows) -> tuple[str, ...]:
        if self.mask_classes:
            return self.mask_classes.names
        if self.classes:
            return class_names(self.classes)
        found = {label for own in rows.values() for _, row in own for label in row.labels or ()}
        return columns.names or sorted_names(found)

    def _rows(
        self, parts: Sequence[ParquetPart], columns: Columns, left_out: LeftOut
    ) -> Iterator[tuple[ParquetPart, LabelledRow]]:
        for part in parts:
            own = self._columns(part)  # the names of its classes may be in another order
            if own.several != columns.several:
                raise DataError(f"{part.file.url}: {own.label} holds {'lists' if own.several else 'one label'}, unlike "
                                "in other files; write them alike")  # fmt: skip
            for row in labelled_rows(part, own):
                if row.labels is None:
                    left_out.add("without a label", f"{part.name}: row {row.number}")
                else:
                    yield part, row

    def _items(
        self, rows: Sequence[tuple[ParquetPart, LabelledRow]], classes: tuple[str, ...], kind: str
    ) -> Iterator[Item]:
        numbers = class_numbers(classes)
        meaning = f" {self.mask_classes.digest}" if self.mask_classes else ""
        for part, row in rows:
            if unknown := [label for label in row.labels or () if label not in numbers]:
                raise DataError(f"{part.file.url}: row {row.number}: the label {unknown[0]!r} is none of the "
                                f"{len(classes)} classes ({shown_classes(classes)}); correct it, or add it to "
                                "--classes")  # fmt: skip
            own = tuple(sorted({numbers[label] for label in row.labels or ()}))
            yield Item(
                f"{part.name}:{row.number}",
                own[0] if kind == "classification" else -1,
                f"{part.mark}{meaning}",
                own if kind == "multilabel" else None,
                row=f"{part.name}: row {row.number}",
                chunk=f"{part.name}:{row.group}",
            )


@lru_cache(maxsize=1)
def _by_name(folder: str) -> dict[str, ParquetPart]:
    return {part.name: part for part in parquet_parts(folder)}


@lru_cache(maxsize=64)
def _columns_of(part: ParquetPart, image: str, label: str, mask: str) -> Columns:
    return find_columns(part.file.url, schema_of(part), image=image, label=label, mask=mask)


def _splits(folder: str, alone: str, left_out: LeftOut) -> dict[str, list[ParquetPart]]:
    """Return the files of each split, or of one alone; where no name says a split, all are of that one.

    Raises:
        DataError: none is of that one, or for training.
    """
    found: dict[str, list[ParquetPart]] = {}
    for part in parquet_parts(folder):
        found.setdefault(_split_of(part.name), []).append(part)
    unsaid, needed = found.pop("", []), alone or "train"
    if not found:
        return {needed: unsaid}
    if unsaid:
        left_out.add("of no split", unsaid[0].name, len(unsaid))
    if needed not in found:
        raise DataError(f"{folder}: no file is of the split {needed}, only of {' and '.join(sorted(found))}; its name "
                        f"must begin so, as in {needed}-0.parquet")  # fmt: skip
    return {split: found[split] for split in ROLES if split in found and alone in ("", split)}


def _split_of(name: str) -> str:
    """Return the split that a file's name begins with, or the name of a folder above it."""
    *above, own = name.lower().split("/")
    for word in (own, *reversed(above)):
        for split, names in ROLES.items():
            if any(word == one or word.startswith((f"{one}-", f"{one}.", f"{one}_")) for one in names):
                return split
    return ""

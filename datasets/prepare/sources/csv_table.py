"""Images that a table lists, CSV or Parquet: with a class, several classes, a mask or numbers each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from datasets.errors import PLACE_ERRORS, DataError
from datasets.files.tables import Table, open_table
from datasets.files.urls import folder_beside, join
from datasets.prepare.encode import stored
from datasets.prepare.files import MISSING, marks_of, read_bytes
from datasets.prepare.layout import LeftOut
from datasets.prepare.mask_classes import MaskClasses, check_mask_flags, numbered_mask, remembered_mask_classes
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.split import VAL_SHARE, check_share, check_unused, groups_of, hold_out
from datasets.prepare.table_labels import TableColumns, label_reader
from datasets.prepare.table_rows import ImageRow, by_split, check_trained, image_rows, labelled_items, target_items


@dataclass(frozen=True, kw_only=True, slots=True)
class CsvTable(Source):
    """A table of images, CSV or Parquet, local or s3://: a column of paths, one or more of labels, perhaps splits."""

    name: ClassVar[str] = "csv"
    places: ClassVar[tuple[str, ...]] = ("table", "root")

    table: Annotated[str, tyro.conf.Positional]
    """The table: NAME.csv (with a header line; commas, semicolons, tabs or bars) or NAME.parquet, a path or s3://."""
    root: str = ""
    """Folder or s3://BUCKET/PREFIX that paths are relative to; empty: the table's own."""
    path_column: str = "path"
    """Column of the images: paths, or s3://BUCKET/KEY."""
    label_column: str = "label"
    """Column of the classes: one an image, or several where it holds lists or there is a --label-separator."""
    label_separator: str = ""
    """Text between the labels of an image with several, such as `;`."""
    label_columns: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each class, in place of --label-column: names, or patterns such as `is_*`; `*` is all
    other columns."""
    mask_column: str = ""
    """Column of the masks' paths, in place of --label-column: segmentation. Needs --classes."""
    targets: tuple[str, ...] = ()
    """Columns of numbers, in place of --label-column: regression."""
    split_column: str = "split"
    """Column that says train, val or test, where the table has one; empty: it isn't looked at."""
    classes: str = ""
    """Class names in the order of their numbers: `cat,dog`, a file with a name a line or a JSON list, a folder of
    prepared data, or a run's name or folder: those that it was trained on. Empty: the labels found, sorted. With
    --mask-column as `prepare masks` takes it."""
    ignore: tuple[str, ...] = ()
    """With --mask-column: values of pixels that are neither trained nor evaluated, or names of classes that are
    none."""
    binary: bool = False
    """With --mask-column: the masks are black and white; from 128 on the second class, below it the first."""
    split: Literal["", "train", "val", "test"] = ""
    """Write this split alone: the rows that are of it, or all where the table says nothing of splits."""
    val_share: float = VAL_SHARE
    """Share of each class held out for validation if no row is of the split val; the paths decide which."""

    def __post_init__(self) -> None:
        check_share(self.val_share)
        check_mask_flags(mask_column=self.mask_column, classes=self.classes, ignore=self.ignore, binary=self.binary)
        if self.label_separator and (self.targets or self.mask_column or self.label_columns):
            raise ValueError("--label-separator is for --label-column: leave it out, or what stands in its place")
        if self.targets and (self.mask_column or self.label_columns or self.classes):
            raise ValueError("--targets are numbers: leave out --mask-column, --label-columns and --classes")
        if len({*self.targets}) < len(self.targets):
            raise ValueError(f"--targets are {', '.join(self.targets)}: name each column once")

    @property
    def columns(self) -> TableColumns:
        """The columns that are read."""
        return TableColumns(
            path=self.path_column,
            label=self.label_column,
            separator=self.label_separator,
            flags=self.label_columns,
            mask=self.mask_column,
            targets=self.targets,
            split=self.split_column,
        )

    @property
    def mask_classes(self) -> MaskClasses | None:
        """What the masks' pixels mean, with --mask-column."""
        if not self.mask_column:
            return None
        return remembered_mask_classes(self.classes, self.ignore, binary=self.binary)

    def plan(self) -> Plan:
        """Read the table, and look for its files.

        Raises:
            DataError: no such table or column, a row that can't be understood, or none of the files; names the row.
        """
        table, left_out = open_table(self.table), LeftOut()
        reader = label_reader(table, self.columns)
        rows = image_rows(table, reader, self.columns, otherwise=self.split or "train", left_out=left_out)
        marks = self._marks(table, rows, with_masks=reader.kind == "segmentation")
        if reader.kind == "segmentation":
            classes, items = self._masked_items(rows, marks)
        elif reader.kind == "regression":
            classes, items = reader.classes, target_items(rows, marks)
        else:
            classes, items = labelled_items(table, reader, rows, marks, self.classes)
        splits = by_split(table, rows, items, self.split)
        notes: tuple[str, ...] = ()
        if reader.kind == "classification" and not self.split:
            check_trained(table.url, classes, splits, named=bool(self.classes))
        if "val" not in splits and not self.split:
            notes = (f"val is {self.val_share:.0%} of the training rows: the table has none for it",)
            splits = hold_out(splits["train"], self.val_share, groups_of(splits["train"]), self.table) | {
                split: items for split, items in splits.items() if split == "test"
            }
        else:
            check_unused(self.val_share, self.table)
        return Plan(
            classes=classes,
            splits=splits,
            kind=reader.kind,
            is_one_split=bool(self.split),
            is_listed=True,
            left_out=left_out.reasons,
            notes=notes,
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one file's bytes as they are.

        Raises:
            DataError: it isn't there, or is no image that can be read; names its row.
        """
        try:
            return stored(read_bytes(self._place(item.name)), item.name)
        except PLACE_ERRORS:
            raise
        except ValueError as error:
            raise self._error(item, item.name, error) from None

    def mask(self, split: str, item: Item, image: bytes) -> bytes:
        """Return one mask as a grey PNG of class numbers, 255 for pixels that are ignored.

        Raises:
            DataError: a mask that can't be read, of another size than its image, or with pixels of no class.
        """
        assert self.mask_classes is not None
        try:
            return numbered_mask(self.mask_classes, read_bytes(self._place(item.mask)), image, item.name)
        except PLACE_ERRORS:
            raise
        except (ValueError, OSError) as error:
            raise self._error(item, item.mask, error) from error

    def _error(self, item: Item, name: str, reason: object) -> DataError:
        return DataError(f"{self.table}: {item.row}: {name}: {reason}")

    def _place(self, name: str) -> str:
        return join(self.root or folder_beside(self.table), name)

    def _marks(self, table: Table, rows: list[ImageRow], *, with_masks: bool) -> dict[str, str]:
        """Return what tells of each path that its file has changed; what isn't there is named when it is read."""
        paths = {path for row in rows for path in (row.path, *(row.labels if with_masks else ()))}
        places = {path: self._place(path) for path in paths}
        marks = marks_of(places.values())
        if all(marks[places[row.path]] == MISSING for row in rows):
            raise DataError(f"{table.url}: {rows[0].place}: {places[rows[0].path]}: no such file, nor any of the "
                            "others; name the folder that the paths are relative to with --root")  # fmt: skip
        return {path: marks[place] for path, place in places.items()}

    def _masked_items(self, rows: list[ImageRow], marks: dict[str, str]) -> tuple[tuple[str, ...], list[Item]]:
        meaning = self.mask_classes
        assert meaning is not None
        return meaning.names, [
            Item(row.path, -1, f"{marks[row.path]} {mask} {marks[mask]} {meaning.digest}", mask=mask, row=row.place)
            for row in rows
            for mask in row.labels
        ]

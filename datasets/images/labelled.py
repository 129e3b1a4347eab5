"""Labelled images that are no shards (folders, tars, tables), read as samples of a model's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.tables import Table, is_table, open_table
from datasets.files.urls import folder_beside, is_shard, join, name_of
from datasets.images.listing import ImageFile, find_images, no_images, table_images
from datasets.loading.batch import Batch
from datasets.loading.corruption import CorruptionLog
from datasets.loading.processes import one_thread, unchanged
from datasets.loading.reader import Reader, Sample
from datasets.loading.samples import Request, Samples, View
from datasets.prepare.layout import ROLES, LeftOut
from datasets.prepare.table_labels import LabelReader, TableColumns, label_reader
from datasets.prepare.table_rows import check_split, image_rows
from datasets.shards.class_names import class_numbers, shown_classes
from datasets.shards.manifest import DatasetManifest, ShardInfo

_REQUESTS_AT_ONCE = 16
_MEANT_FOR = (
    ("separator", "--label-separator", "multilabel"),
    ("flags", "--label-columns", "multilabel"),
    ("mask", "--mask-column", "segmentation"),
    ("targets", "--targets", "regression"),
)
"""Field of `TableColumns`, its flag, and the kind of labels that it is about."""


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Samples of a place, in the order in which they were found. A `Reader` that pickles as its list of files."""

    files: tuple[ImageFile, ...]
    labels: np.ndarray
    """int64 [samples]: class numbers; -1 in segmentation; multi-label: uint8 [samples, K], 1 for each class;
    regression: float64 [samples, K] targets"""
    manifest: DatasetManifest

    def read(self, sample_id: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: its file, or its mask's, can't be read.
        """
        file = self.files[sample_id]
        if self.manifest.kind == "segmentation":
            place = join(folder_beside(self.manifest.shards[0].url), *file.labels)
            return Sample(file.read(), -1, ImageFile(place, place).read())
        if self.manifest.kind == "multilabel":
            return Sample(file.read(), -1, labels=tuple(np.flatnonzero(self.labels[sample_id]).tolist()))
        if self.manifest.kind == "regression":
            return Sample(file.read(), -1, targets=tuple(self.labels[sample_id].tolist()))
        return Sample(file.read(), int(self.labels[sample_id]))

    def read_each(self, sample_ids: Sequence[int]) -> Iterator[Sample]:
        """Yield samples in the order of their ids; those of S3 are fetched together."""
        if not any(is_remote(self.files[index].url) for index in sample_ids):
            yield from map(self.read, sample_ids)
            return
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            yield from pool.map(self.read, sample_ids)

    def describe(self, sample_id: int) -> str:
        """Name a sample by its file."""
        return self.files[sample_id].name

    def key(self, sample_id: int) -> str:
        """Return the last part of its file's name; in a tar, the file's name in it."""
        file = self.files[sample_id]
        return name_of(file.name.removeprefix(f"{file.url}:"))


def labelled_files(
    place: str, *, kind: str, classes: tuple[str, ...], columns: TableColumns, split: str = ""
) -> tuple[LabelledFiles, tuple[str, ...]]:
    """List the images of a place with their classes, and return lines for the user on what was left out.

    Args:
        place: a folder of class folders, a tar, or a table, as `find_images` takes them.
        kind: what the labels are.
        classes: of the model, in the order of its outputs; labels are names of these or their numbers.
        columns: of a table. The mask's is `label` where none is named; those of targets are named as the model's are.
        split: of a table with splits: the rows that are read; empty: all, where they are of one split.

    Raises:
        DataError: no images, several splits, or one whose label is missing or none of the classes; one line.
    """
    left_out = LeftOut()
    for field, flag, meant in _MEANT_FOR:
        if getattr(columns, field) and kind != meant:
            raise DataError(f"{place}: {flag} is for {meant}, and the model is for {kind}; leave it out")
    if is_table(place):
        files = _table_files(place, kind, classes, columns, split, left_out)
    elif kind == "classification":
        files = tuple(_in_classes(place, find_images(place, left_out), left_out))
    else:
        raise DataError(f"{place}: only shards and tables (CSV or Parquet) hold what a model for {kind} is evaluated "
                        "on; prepare shards with `python -m jobs.prepare`")  # fmt: skip
    if not files:
        raise no_images(place, left_out)
    labels, counts = _labels(place, files, kind, classes)
    shard = ShardInfo(url=place, samples=len(files), num_bytes=0, labelled=len(files), max_label=-1, first_row=0)
    manifest = DatasetManifest(shards=(shard,), classes=classes, kind=kind, class_counts=counts)
    return LabelledFiles(files, labels, manifest), tuple(_notes(place, left_out, classes, counts))


def _table_files(
    place: str, kind: str, classes: tuple[str, ...], columns: TableColumns, split: str, left_out: LeftOut
) -> tuple[ImageFile, ...]:
    """List the rows of a table's split as `jobs.prepare csv` reads them."""
    columns = replace(
        columns,
        mask=columns.mask or (columns.label if kind == "segmentation" else ""),
        targets=columns.targets or (classes if kind == "regression" else ()),
        separator=columns.separator or ("\n" if kind == "multilabel" else ""),  # a cell is one label, or none
    )
    table = open_table(place)
    if split and columns.split not in table.columns:
        raise DataError(f"{place}: no column {columns.split!r} in it says which rows are of {split}; leave --split out "
                        "or name the column with --split-column")  # fmt: skip
    reader = label_reader(table, columns)
    _check_columns(table, reader, kind, classes)
    rows = image_rows(table, reader, columns, otherwise=split or "test", left_out=left_out)
    splits = [role for role in ROLES if any(row.split == role for row in rows)]
    if not split and len(splits) > 1:
        raise DataError(f"{place}: it holds the splits {', '.join(splits)}; name one with --split, or leave the column "
                        "aside with --split-column ''")  # fmt: skip
    if split:
        check_split(table, split, splits)
    return tuple(table_images(table, (row for row in rows if split in ("", row.split))))


def _check_columns(table: Table, reader: LabelReader, kind: str, classes: tuple[str, ...]) -> None:
    """Refuse columns that say more or less of an image than the model does."""
    if reader.kind == "multilabel" and kind == "classification":
        raise DataError(f"{table.url}: the column {reader.columns[0]!r} holds lists, and the model is for {kind}, one "
                        "label an image; name another with --label-column")  # fmt: skip
    if kind == "regression" and len(reader.columns) != len(classes):
        raise DataError(f"{table.url}: --targets names {len(reader.columns)} columns, and the model estimates "
                        f"{len(classes)} numbers ({shown_classes(classes)}); name one for each, in order")  # fmt: skip


def file_batches(
    reader: Reader, config: DataConfig, *, image_size: int, batch_size: int, samples: int | None = None
) -> Iterator[Batch]:
    """Yield every sample once, as an evaluation sees it; `stream_index` is its number. Damaged ones are left out.

    With `samples`, only so many, evenly spaced.

    Raises:
        DataError: files that can't be read.
    """
    everything, view = reader.manifest.num_samples, View(image_size=image_size, training=False)
    count = everything if samples is None else min(samples, everything)

    def request(start: int) -> Request:
        ids = np.arange(start, min(start + batch_size, count)) * everything // count
        return Request(view, ids, ids, np.zeros_like(ids))

    loader = DataLoader(
        Samples({0: reader}, config),
        batch_sampler=[request(start) for start in range(0, count, batch_size)],  # type: ignore[misc]
        num_workers=min(config.num_loaders, -(-count // batch_size)),
        collate_fn=unchanged,
        worker_init_fn=one_thread,
        generator=torch.Generator(),  # as in datasets/loading/loader.py
        prefetch_factor=config.prefetch_batches if config.num_loaders else None,
    )
    corruption = CorruptionLog()
    for batch in loader:
        if not isinstance(batch, Batch):
            raise batch
        corruption.add(batch)
        yield batch


def _in_classes(place: str, files: Iterable[ImageFile], left_out: LeftOut) -> Iterator[ImageFile]:
    """Leave out images of a folder that lie in no class folder."""
    for file in files:
        if file.labels or is_shard(place):
            yield file
        else:
            left_out.add("outside class folders", file.name)


def _labels(
    place: str, files: Sequence[ImageFile], kind: str, classes: tuple[str, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the files' labels as `LabelledFiles` keeps them, and how many images each class has."""
    if kind == "segmentation":
        return np.full(len(files), -1), ()
    if kind == "regression":
        return np.array([[float(one.rpartition("=")[2]) for one in file.labels] for file in files]), ()
    if kind == "multilabel":
        hot = _multi_hot(files, classes)
        return hot, tuple(hot.sum(0, dtype=np.int64).tolist())
    numbers = _numbers(place, files, classes)
    return numbers, tuple(np.bincount(numbers, minlength=len(classes)).tolist())


def _multi_hot(files: Sequence[ImageFile], classes: tuple[str, ...]) -> np.ndarray:
    """Return uint8 [files, K] of the files' labels."""
    known, rows = class_numbers(classes), np.zeros((len(files), len(classes)), dtype=np.uint8)
    for row, file in zip(rows, files, strict=True):
        for label in file.labels:
            if label not in known:
                raise DataError(
                    f"{file.name}: the label {label!r} is none of the model's {len(classes)} classes "
                    f"({shown_classes(classes)}); name the text between labels with --label-separator"
                )
            row[known[label]] = 1
    return rows


def _numbers(place: str, files: Sequence[ImageFile], classes: tuple[str, ...]) -> np.ndarray:
    """Return each file's class number."""
    known, shown = class_numbers(classes), shown_classes(classes)
    given = ["".join(file.labels) for file in files]
    labels = Counter(given)
    for label in labels:
        if label in known:
            continue
        example = files[given.index(label)].name
        if not label:
            raise DataError(f"{example}: it has no label; the model's classes are {shown}")
        roles = {name for names in ROLES.values() for name in names}
        if {one.lower() for one in labels} <= roles:
            raise DataError(f"{place}: it holds the splits {', '.join(sorted(labels))}; name one, such as "
                            f"{place.rstrip('/')}/{min(labels)}")  # fmt: skip
        raise DataError(f"{example}: the label {label!r} is none of the model's {len(classes)} classes ({shown}); "
                        "rename or remove it")  # fmt: skip
    return np.array([known[label] for label in given], dtype=np.int64)


def _notes(place: str, left_out: LeftOut, classes: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    for reason, (count, example) in left_out.reasons.items():
        yield f"{place}: {count} file{'s' if count > 1 else ''} left out: {reason}, such as {example}"
    if empty := [name for name, count in zip(classes, counts, strict=False) if not count]:
        yield f"{place}: no images of {len(empty)} of the {len(classes)} classes, such as {empty[0]}"

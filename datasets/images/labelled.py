"""Labelled images that are no shards (folders, tars, tables), read as samples of a model's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.urls import folder_beside, is_shard, join
from datasets.images.listing import TABLE_SUFFIX, ImageFile, TableColumns, find_images, no_images
from datasets.loading.batch import Batch
from datasets.loading.corruption import CorruptionLog
from datasets.loading.processes import one_thread, unchanged
from datasets.loading.reader import Reader, Sample
from datasets.loading.samples import Request, Samples, View
from datasets.prepare.layout import ROLES, LeftOut
from datasets.shards.class_names import class_numbers, shown_classes
from datasets.shards.manifest import DatasetManifest, ShardInfo

_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Samples of a place, in the order in which they were found. A `Reader` that pickles as its list of files."""

    files: tuple[ImageFile, ...]
    labels: np.ndarray
    """int64 [samples]: class numbers; -1 in segmentation; multi-label: uint8 [samples, K], 1 for each class"""
    manifest: DatasetManifest

    def read(self, sample_id: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: its file, or its mask's, can't be read.
        """
        file = self.files[sample_id]
        if self.manifest.kind == "segmentation":
            place = join(folder_beside(self.manifest.shards[0].url), file.label)
            return Sample(file.read(), -1, ImageFile(place, place).read())
        if self.manifest.kind == "multilabel":
            return Sample(file.read(), -1, labels=tuple(np.flatnonzero(self.labels[sample_id]).tolist()))
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


def labelled_files(
    place: str, *, kind: str, classes: tuple[str, ...], columns: TableColumns
) -> tuple[LabelledFiles, tuple[str, ...]]:
    """List the images of a place with their classes, and return lines for the user on what was left out.

    Args:
        place: as `find_images` takes it.
        kind: what the labels are.
        classes: of the model, in the order of its outputs; labels are names of these or their numbers.
        columns: of a table.

    Raises:
        DataError: no images, or one whose label is missing or none of the classes; one line.
    """
    left_out = LeftOut()
    if kind == "regression":
        raise DataError(f"{place}: a model for {kind} is evaluated on shards; prepare the table with "
                        "`python -m jobs.prepare csv TABLE --targets COLUMN`")  # fmt: skip
    if columns.separator and kind != "multilabel":
        raise DataError(f"{place}: the model is for {kind}, one label an image; leave --label-separator out")
    if kind != "classification" and not place.endswith(TABLE_SUFFIX):
        raise DataError(f"{place}: only shards and tables (NAME{TABLE_SUFFIX}) hold what a model for {kind} is "
                        "evaluated on; prepare shards with `python -m jobs.prepare`")  # fmt: skip
    files = tuple(_in_classes(place, find_images(place, left_out, columns), left_out))
    if not files:
        raise no_images(place, left_out)
    labels, counts = _labels(place, files, kind, classes, columns.separator)
    shard = ShardInfo(url=place, samples=len(files), num_bytes=0, labelled=len(files), max_label=-1, first_row=0)
    manifest = DatasetManifest(shards=(shard,), classes=classes, kind=kind, class_counts=counts)
    return LabelledFiles(files, labels, manifest), tuple(_notes(place, left_out, classes, counts))


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
    in_folders = not is_shard(place) and not place.endswith(TABLE_SUFFIX)
    for file in files:
        if file.label or not in_folders:
            yield file
        else:
            left_out.add("outside class folders", file.name)


def _labels(
    place: str, files: Sequence[ImageFile], kind: str, classes: tuple[str, ...], separator: str
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the files' labels as `LabelledFiles` keeps them, and how many images each class has."""
    if kind == "segmentation":
        return np.full(len(files), -1), ()
    if kind == "multilabel":
        hot = _multi_hot(files, classes, separator)
        return hot, tuple(hot.sum(0, dtype=np.int64).tolist())
    numbers = _numbers(place, files, classes)
    return numbers, tuple(np.bincount(numbers, minlength=len(classes)).tolist())


def _multi_hot(files: Sequence[ImageFile], classes: tuple[str, ...], separator: str) -> np.ndarray:
    """Return uint8 [files, K] of labels with a separator between them; nothing between two of them is no label."""
    known, rows = class_numbers(classes), np.zeros((len(files), len(classes)), dtype=np.uint8)
    for row, file in zip(rows, files, strict=True):
        parts = file.label.split(separator) if separator else [file.label]
        for label in filter(None, map(str.strip, parts)):
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
    labels = Counter(file.label for file in files)
    for label in labels:
        if label in known:
            continue
        example = next(file.name for file in files if file.label == label)
        if not label:
            raise DataError(f"{example}: it has no label; the model's classes are {shown}")
        roles = {name for names in ROLES.values() for name in names}
        if {one.lower() for one in labels} <= roles:
            raise DataError(f"{place}: it holds the splits {', '.join(sorted(labels))}; name one, such as "
                            f"{place.rstrip('/')}/{min(labels)}")  # fmt: skip
        raise DataError(f"{example}: the label {label!r} is none of the model's {len(classes)} classes ({shown}); "
                        "rename or remove it")  # fmt: skip
    return np.array([known[file.label] for file in files], dtype=np.int64)


def _notes(place: str, left_out: LeftOut, classes: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    for reason, (count, example) in left_out.reasons.items():
        yield f"{place}: {count} file{'s' if count > 1 else ''} left out: {reason}, such as {example}"
    if empty := [name for name, count in zip(classes, counts, strict=False) if not count]:
        yield f"{place}: no images of {len(empty)} of the {len(classes)} classes, such as {empty[0]}"

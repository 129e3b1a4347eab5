"""Predictions of classifiers as rows, and the Parquet file that takes them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.files import s3
from datasets.files.s3 import is_remote
from datasets.images.listing import ImageFile
from pipeline.inference.file_predictions import predict_files
from pipeline.inference.flip import flip_averaged
from pipeline.inference.predictor import Predictor, open_predictor


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorSpec:
    """How a predictor is opened, here or in a worker."""

    model: str
    storage: str = "runs"
    best: bool = False
    image_size: int = 0
    ema: bool = True
    flip: bool = False
    """Take the mean of the logits of an image and of its mirror image."""

    def open(self) -> Predictor:
        """Open it.

        Raises:
            ValueError: there is no such model, or it can't be used.
        """
        predictor = open_predictor(
            self.model, storage=self.storage, best=self.best, image_size=self.image_size, ema=self.ema
        )
        return replace(predictor, run=flip_averaged(predictor.run)) if self.flip else predictor


@dataclass(frozen=True, slots=True)
class Row:
    """One image's prediction."""

    path: str
    label: str | list[str] | None
    """multi-label: all classes that it has"""
    confidence: float | None
    """in the label; multi-label: none"""
    scores: list[float] | None
    """probability of each class, or number of each target, in the order of the table's `classes`"""
    error: str | None = None
    """what is wrong with the image; then there is nothing else"""


def rows_of(predictor: Predictor, files: Iterable[ImageFile], *, batch_size: int, max_pixels: int) -> Iterator[Row]:
    """Yield a row for each image, in their order."""
    for file, prediction in predict_files(predictor, files, batch_size=batch_size, max_pixels=max_pixels):
        if isinstance(prediction, ValueError):
            yield Row(file.name, None, None, None, str(prediction))
        else:
            scores = prediction.scores.tolist()
            if predictor.kind == "regression":
                yield Row(file.name, None, None, scores)
            elif predictor.kind == "multilabel":
                yield Row(file.name, predictor.labels_of(prediction), None, scores)
            else:
                best = int(prediction.scores.argmax())
                yield Row(file.name, predictor.classes[best], scores[best], scores)


def check_table(place: str, kind: str) -> None:
    """Check that a table can take what a model says.

    Raises:
        ValueError: it can't.
    """
    if kind == "segmentation":
        raise ValueError(f"out is {place!r}: a table is for classification; for {kind} name a folder")


class TableWriter:
    """Writes rows into a Parquet file, local or in S3, which appears whole or not at all. A context manager.

    The file's metadata name the `classes` (in regression the targets), as a JSON list, and the `model`. Of a
    multi-label model the table has `labels`, a list, in place of `label` and `confidence`, and its metadata the
    `thresholds`; of a regression it has `scores` alone, which are the numbers.
    """

    def __init__(
        self, place: str, *, classes: Sequence[str], model: str, thresholds: Sequence[float], kind: str
    ) -> None:
        import pyarrow as pa

        self.place, self._stack = place, contextlib.ExitStack()
        several, one = pa.field("labels", pa.list_(pa.string())), pa.field("label", pa.string())
        labels = {"multilabel": [several], "regression": []}.get(kind, [one, pa.field("confidence", pa.float32())])
        metadata = {"classes": json.dumps(list(classes)), "model": model}
        self._schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                *labels,
                pa.field("scores", pa.list_(pa.float32())),
                pa.field("error", pa.string()),
            ],
            metadata=metadata | ({"thresholds": json.dumps(list(thresholds))} if thresholds else {}),
        )

    def __enter__(self) -> TableWriter:
        import pyarrow.parquet as pq

        near = None if is_remote(self.place) else Path(self.place).absolute().parent
        if near is not None and not near.is_dir():
            raise ValueError(f"out is {self.place!r}: the folder {near} doesn't exist; make it first")
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix=".predictions-", dir=near))
        self._path = Path(folder, "rows.parquet")
        self._file: Any = pq.ParquetWriter(self._path, self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            self._file.close()
            if kind is not None:
                return
            if is_remote(self.place):
                s3.upload(self.place, self._path)
            else:
                self._path.replace(self.place)

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        import pyarrow as pa

        columns = {
            name: [getattr(row, "label" if name == "labels" else name) for row in rows] for name in self._schema.names
        }
        self._file.write_table(pa.table(columns, schema=self._schema))

"""Predict images with a trained model: `python -m jobs.predict MODEL PLACE...`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from datasets.files.tables import PARQUET_SUFFIX
from datasets.images.listing import ImageFile
from datasets.prepare.layout import LeftOut
from datasets.transforms.pixels import MAX_PIXELS
from jobs.common.cli import run_main
from jobs.common.display import shown_progress, wide_console
from jobs.common.model_flags import ModelChoice
from jobs.common.parsing import check_local, parse

if TYPE_CHECKING:
    from pipeline.inference.prediction_table import PredictorSpec, Row
    from pipeline.inference.predictor import Prediction, Predictor

CHUNK = 512
"""Rows that are written at a time."""
SHOWN = 1000
"""Images that the printed table has, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(ModelChoice):
    """Options of the prediction."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's name or folder (for its latest valid checkpoint), a checkpoint's folder, or a file that `jobs.export`
    wrote. A .pt2 file is a program: use one only if you trust its origin."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Where the images are, local or s3://: image files, folders (with all folders in them), tars or brace lists of
    tars, tables of paths (NAME.csv, NAME.tsv, NAME.parquet)."""
    path_column: str = "path"
    """Column of a table with the images' paths, relative to the table's folder."""
    top: int = 5
    """Number of labels to print for each image, at most: the most probable ones, of a multi-label model with a mark at
    those whose probability reaches their threshold."""
    out: str = ""
    """Segmentation: folder for the masks, as palette PNGs whose values are the classes and whose colours show them.
    Classification: a table NAME.parquet, local or s3://, with path, label, confidence and the scores of all classes;
    of a multi-label model with path, labels and scores."""
    workers: int = 0
    """With --out NAME.parquet: workers of a Ray cluster, of one CPU each, which must be able to read the images and the
    model; 0: this process alone."""
    address: str = ""
    """With --workers: address of the Ray cluster; empty: RAY_ADDRESS, else one on this machine."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip: the mean of the logits of the image and of its mirror image."""
    tile: int = 0
    """Segmentation: short side in pixels of overlapping tiles of the image, which have the model's aspect ratio and are
    resized to its input; 0: the whole image (or the evaluation's crop of it) at once."""
    tile_overlap: float = 0.25
    """With --tile: share of a tile's side that it has in common with the next one."""
    max_pixels: int = MAX_PIXELS
    """Largest image to decode, in pixels."""
    batch_size: int = 16
    """Images per batch."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        ModelChoice.__post_init__(self)  # super() doesn't find the class that slots made anew
        if not self.images:
            raise ValueError(f"no images are named: add files, folders, tars or tables after {self.model}")
        if not self.out.endswith(PARQUET_SUFFIX):
            check_local(out=self.out)
        for name in ("top", "batch_size", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: it must be 0 (this process) or more")
        if self.workers and not self.out.endswith(PARQUET_SUFFIX):
            raise ValueError(f"workers is {self.workers}: a cluster predicts into a table; name it with "
                             f"--out NAME{PARQUET_SUFFIX}")  # fmt: skip
        if self.tile < 0:
            raise ValueError(f"tile is {self.tile}: it must be 0 (off) or a number of pixels")
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(f"tile_overlap is {self.tile_overlap}: it must be at least 0 and below 1")


def main(argv: Sequence[str]) -> int:
    """Predict, and print. Exit code 1: some of the files are no images that can be read."""
    options = parse(
        Options, argv, prog="python -m jobs.predict", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    from pipeline.inference.file_predictions import images_of, predict_files

    left_out = LeftOut()
    files = images_of(options.images, left_out, options.path_column)
    predictor = predictor_of(options)
    for line in predictor.notes:
        print(f"note: {line}", file=sys.stderr)
    if options.out.endswith(PARQUET_SUFFIX):
        damaged = _write_table(options, predictor, files)
        _say_left_out(left_out)
        return 1 if damaged else 0
    masks = _Masks(options) if predictor.kind == "segmentation" else None
    output, damaged = _Output(predictor.kind, options.json), 0
    for file, prediction in predict_files(
        predictor, files, batch_size=options.batch_size, max_pixels=options.max_pixels
    ):
        if isinstance(prediction, ValueError):
            print(f"error: {_located(file, prediction)}", file=sys.stderr)
            damaged += 1
        else:
            place = masks.write(file, prediction, len(predictor.classes)) if masks else None
            output.add(_answer(predictor, file, prediction, options.top, place))
    output.close()
    _say_left_out(left_out)
    return 1 if damaged else 0


def _say_left_out(left_out: LeftOut) -> None:
    for reason, (count, example) in left_out.reasons.items():
        print(f"note: {count} left out: {reason}, such as {example}", file=sys.stderr)


def _write_table(options: Options, predictor: Predictor, files: Iterable[ImageFile]) -> int:
    """Write the predictions into a table; return how many images can't be read."""
    from pipeline.inference.prediction_table import TableWriter, check_table

    check_table(options.out, predictor.kind)
    done, damaged = 0, 0
    with (
        TableWriter(
            options.out,
            classes=predictor.classes,
            model=predictor.name,
            thresholds=predictor.thresholds,
            kind=predictor.kind,
        ) as table,
        shown_progress("predict") as show,
    ):
        for rows in _rows(options, predictor, files):
            table.write(rows)
            for row in rows:
                if row.error is not None:
                    damaged += 1
                    print(f"error: {row.path}: {row.error}", file=sys.stderr)
            done += len(rows)
            show(done, done)
    unread = f", {damaged} of them can't be read (column error)" if damaged else ""
    print(f"{options.out}: {done} images{unread}")
    return damaged


def _rows(options: Options, predictor: Predictor, files: Iterable[ImageFile]) -> Iterator[list[Row]]:
    """Yield rows in chunks, made here or by a cluster's workers."""
    from pipeline.inference.prediction_table import rows_of

    sizes = {"batch_size": options.batch_size, "max_pixels": options.max_pixels}
    if not options.workers:
        rows = rows_of(predictor, files, **sizes)
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield chunk
        return
    from infra.cluster.config import ClusterConfig
    from infra.cluster.connect import connect
    from pipeline.inference.cluster_predictions import predict_on_cluster

    if waits := connect(ClusterConfig(address=options.address), num_workers=options.workers):
        print(f"note: {waits}", file=sys.stderr)
    # Of a run that trains meanwhile, the checkpoint that was opened here.
    spec = replace(spec_of(options), model=predictor.name, best=False)
    yield from predict_on_cluster(spec, files, workers=options.workers, **sizes)


def spec_of(options: Options) -> PredictorSpec:
    """Return how the model is opened, here and by workers."""
    from pipeline.inference.prediction_table import PredictorSpec

    return PredictorSpec(
        model=options.model,
        storage=options.storage,
        best=options.best,
        image_size=options.image_size,
        ema=options.ema,
        flip=options.tta == "flip",
    )


def predictor_of(options: Options) -> Predictor:
    """Open the model as the options ask.

    Raises:
        ValueError: there is none, or it doesn't take these options.
    """
    predictor = spec_of(options).open()
    if options.tile and predictor.kind != "segmentation":
        raise ValueError(f"tile is {options.tile}: tiles are for segmentation, and {predictor.name} is for "
                         f"{predictor.kind}")  # fmt: skip
    if options.out and predictor.kind != "segmentation" and not options.out.endswith(PARQUET_SUFFIX):
        raise ValueError(f"out is {options.out!r}: for {predictor.kind} name a table, NAME{PARQUET_SUFFIX}, or leave "
                         "it out to print the predictions")  # fmt: skip
    return replace(predictor, tile=options.tile, overlap=options.tile_overlap)


def _located(file: ImageFile, error: ValueError) -> str:
    return str(error) if str(error).startswith(file.name) else f"{file.name}: {error}"


class _Output:
    """Prints answers: JSON as they come, or a table at the end."""

    def __init__(self, kind: str, as_json: bool) -> None:
        self._kind, self._as_json, self._count = kind, as_json, 0
        self._shown: list[dict[str, Any]] = []

    def add(self, answer: dict[str, Any]) -> None:
        if self._as_json:
            print(",\n" if self._count else "[", json.dumps(answer, indent=1), sep="", end="")
        elif self._count < SHOWN:
            self._shown.append(answer)
        self._count += 1

    def close(self) -> None:
        if self._as_json:
            print("\n]" if self._count else "[]")
        elif self._shown:
            _print(self._shown, self._kind)
        if self._count > SHOWN and not self._as_json:
            print(f"and {self._count - SHOWN} more images: --json prints all")


class _Masks:
    """Writes masks into a folder, in folders like those that the images lie in below the place that was named."""

    def __init__(self, options: Options) -> None:
        if not options.out:
            raise ValueError("out is empty: the model segments, so name a folder for the masks with --out")
        self._out, self._places, self._written = Path(options.out), options.images, dict[str, str]()

    def write(self, file: ImageFile, prediction: Prediction, num_classes: int) -> Path:
        """Write an image's mask; return where.

        Raises:
            ValueError: another image of the same name has its mask there, or the name leads out of the folder.
        """
        from pipeline.training.figures import indexed_mask

        name = self._name(file)
        if name in self._written:
            raise ValueError(f"{file.name}: {self._written[name]} has the same name; give them in two calls, each with "
                             "its --out")  # fmt: skip
        self._written[name] = file.name
        place = self._out / name
        place.parent.mkdir(parents=True, exist_ok=True)
        assert prediction.mask is not None
        place.write_bytes(indexed_mask(prediction.mask, num_classes))
        return place

    def _name(self, file: ImageFile) -> str:
        inner = file.name.removeprefix(f"{file.url}:") if file.name != file.url else _below(file.url, self._places)
        path = PurePosixPath(inner)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{file.name}: a name that leads out of the folder {self._out}; no mask is written for it")
        return str(path.with_name(f"{path.stem}.mask.png"))


def _below(name: str, places: Iterable[str]) -> str:
    """Return an image's path relative to the place that it was found in."""
    roots = [place.rstrip("/") if "://" in place else str(Path(place)) for place in places]
    inside = [root for root in roots if name.startswith(f"{root}/")]
    return name.removeprefix(f"{max(inside, key=len)}/") if inside else PurePosixPath(name).name


def _answer(
    predictor: Predictor, file: ImageFile, prediction: Prediction, top: int, place: Path | None
) -> dict[str, Any]:
    """Return one image's row."""
    order = prediction.scores.argsort()[::-1][:top].tolist()
    if predictor.kind == "regression":
        values = zip(predictor.classes, prediction.scores.tolist(), strict=True)
        return {"image": file.name, "labels": [{"label": name, "value": value} for name, value in values]}
    labels = [(predictor.classes[index], float(prediction.scores[index])) for index in order]
    if predictor.kind == "multilabel":
        there = {*predictor.labels_of(prediction)}
        rows = [{"label": label, "probability": score, "predicted": label in there} for label, score in labels]
        return {"image": file.name, "labels": rows}
    if place is None:
        return {
            "image": file.name,
            "labels": [{"label": label, "probability": score} for label, score in labels],
        }
    return {
        "image": file.name,
        "mask": str(place),
        "labels": [{"label": label, "share": score} for label, score in labels if score],
    }


def _print(answers: Sequence[dict[str, Any]], kind: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    score = {"segmentation": "share", "regression": "value"}.get(kind, "probability")
    table = Table(box=SIMPLE_HEAD)
    several = kind == "multilabel"
    masks, marks = ["mask"] if kind == "segmentation" else [], ["predicted"] if several else []
    for column in ("image", *masks, "target" if kind == "regression" else "label", score, *marks):
        table.add_column(column, justify="right" if column == score else "left", no_wrap=True)
    for answer in answers:
        places = [answer["image"], *([answer["mask"]] if "mask" in answer else [])]
        for label in answer["labels"]:
            mark = [("yes" if label["predicted"] else "")] if several else []
            table.add_row(
                *places, label["label"], f"{label[score]:.4g}" if kind == "regression" else f"{label[score]:.3f}", *mark
            )
            places = [""] * len(places)
    wide_console().print(table)


if __name__ == "__main__":
    run_main(main)

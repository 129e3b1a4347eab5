"""Predict images with a trained model: `python -m jobs.predict MODEL IMAGE...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from datasets.transforms.formats import IMAGE_EXTENSIONS, is_image_name
from jobs.common.cli import parse, run_main
from jobs.common.display import wide_console

if TYPE_CHECKING:
    from pipeline.inference.predictor import Prediction, Predictor


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the prediction."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's name or folder (for its latest valid checkpoint), a checkpoint's folder, or a file that `jobs.export`
    wrote. A .pt2 file is a program: use one only if you trust its origin."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or folders of them."""
    top: int = 5
    """Number of labels to print for each image, at most."""
    out: str = ""
    """Segmentation: folder for the masks, as palette PNGs whose values are the classes and whose colours show them."""
    storage: str = "runs"
    """Folder or s3://BUCKET/PREFIX of the runs, if the model is given by a run's name."""
    image_size: int = 0
    """Image size in pixels; 0: that of the run's own evaluations."""
    ema: bool = True
    """Take the weights' moving average, if the run kept one; with --no-ema, the weights themselves."""
    batch_size: int = 16
    """Images per batch."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.image_size < 0:
            raise ValueError(f"image_size is {self.image_size}: it must be 0 (the run's) or more")


def main(argv: Sequence[str]) -> int:
    """Predict, and print. Exit code 1: some of the files are no images that can be read."""
    options = parse(
        Options, argv, prog="python -m jobs.predict", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    files = [file for name in options.images for file in image_files(Path(name))]
    from pipeline.inference.predictor import open_predictor

    predictor = open_predictor(options.model, storage=options.storage, image_size=options.image_size, ema=options.ema)
    for line in predictor.notes:
        print(f"note: {line}", file=sys.stderr)
    masks = _mask_files(files, options.out) if predictor.kind == "segmentation" else {}
    answers, damaged = [], 0
    for file, prediction in _predictions(predictor, files, options.batch_size):
        if isinstance(prediction, ValueError):
            print(f"error: {file}: {prediction}", file=sys.stderr)
            damaged += 1
            continue
        answers.append(_answer(predictor, file, prediction, options.top, masks.get(file)))
    if options.json:
        print(json.dumps(answers, indent=1))
    elif answers:
        _print(answers, predictor.kind)
    return 1 if damaged else 0


def image_files(path: Path) -> list[Path]:
    """Return the file, or a folder's images in order of their names.

    Raises:
        ValueError: there is no such file, or no image in the folder.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if is_image_name(file.name))
        if not found:
            raise ValueError(f"{path}: no image files lie in this folder ({', '.join(sorted(IMAGE_EXTENSIONS))})")
        return found
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return [path]


def _predictions(
    predictor: Predictor, files: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, Prediction | ValueError]]:
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        yield from zip(batch, predictor.predict([file.read_bytes() for file in batch]), strict=True)


def _mask_files(files: Sequence[Path], out: str) -> dict[Path, Path]:
    """Return where each image's mask goes; images of the same name would overwrite each other's.

    Raises:
        ValueError: there is no folder for them, or two have the same name.
    """
    if not out:
        raise ValueError("out is empty: the model segments, so name a folder for the masks with --out")
    places: dict[Path, Path] = {}
    for file in dict.fromkeys(files):
        place = Path(out, f"{file.stem}.mask.png")
        if place in places.values():
            raise ValueError(
                f"{file}: another image is named {file.stem} too; give them in two calls, each with its --out"
            )
        places[file] = place
    Path(out).mkdir(parents=True, exist_ok=True)
    return places


def _answer(predictor: Predictor, file: Path, prediction: Prediction, top: int, place: Path | None) -> dict[str, Any]:
    """Return one image's row; write its mask, if it has one."""
    order = prediction.scores.argsort()[::-1][:top].tolist()
    labels = [(predictor.classes[index], float(prediction.scores[index])) for index in order]
    if prediction.mask is None:
        return {
            "image": str(file),
            "labels": [{"label": label, "probability": score} for label, score in labels],
        }
    from pipeline.training.figures import indexed_mask

    assert place is not None
    place.write_bytes(indexed_mask(prediction.mask, len(predictor.classes)))
    return {
        "image": str(file),
        "mask": str(place),
        "labels": [{"label": label, "share": score} for label, score in labels if score],
    }


def _print(answers: Sequence[dict[str, Any]], kind: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    score = "share" if kind == "segmentation" else "probability"
    table = Table(box=SIMPLE_HEAD)
    for column in ("image", *(["mask"] if kind == "segmentation" else []), "label", score):
        table.add_column(column, justify="right" if column == score else "left", no_wrap=True)
    for answer in answers:
        places = [answer["image"], *([answer["mask"]] if "mask" in answer else [])]
        for label in answer["labels"]:
            table.add_row(*places, label["label"], f"{label[score]:.3f}")
            places = [""] * len(places)
    wide_console().print(table)


if __name__ == "__main__":
    run_main(main)

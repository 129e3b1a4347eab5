"""Evaluate a checkpoint on labelled images: `python -m jobs.evaluate CHECKPOINT --data PLACE`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from datasets.prepare.table_labels import TableColumns
from jobs.common.cli import run_main
from jobs.common.device import chosen_device
from jobs.common.display import say, wide_console
from jobs.common.model_flags import ModelFlags
from jobs.common.parsing import check_local, parse

if TYPE_CHECKING:
    from pipeline.inference.class_report import Report
    from pipeline.inference.evaluation_data import EvaluationData
    from pipeline.inference.trained_model import SavedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(ModelFlags):
    """Options of the evaluation."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run's name or folder (for its latest valid checkpoint), or FOLDER/checkpoints/CURSOR; local or s3://."""
    data: str
    """Labelled images of the run's classes, local or s3://: shards (a folder or a brace list), a folder with a folder
    for each class, a tar, or a table of paths and labels (NAME.csv, NAME.tsv, NAME.parquet), read as by `jobs.prepare
    csv`."""
    path_column: str = "path"
    """Column of a table with the images' paths, relative to the table's folder."""
    label_column: str = "label"
    """Column of a table with the classes, by name or number, one an image, or several where it holds lists or there is
    a --label-separator; for segmentation with the masks' paths."""
    label_separator: str = ""
    """Several labels an image: text between them in that column, such as `;`."""
    label_columns: tuple[str, ...] = ()
    """Several labels an image: columns of 0 and 1, one for each class, in place of --label-column: names, or patterns
    such as `is_*`; `*` is all other columns."""
    mask_column: str = ""
    """Segmentation: column of the masks' paths, in place of --label-column. Their values are the classes' numbers."""
    targets: tuple[str, ...] = ()
    """Regression: columns of the numbers, in the order of the model's; empty: those with its targets' names."""
    split_column: str = "split"
    """Column that says train, val or test, where the table has one; empty: it isn't looked at."""
    split: Literal["", "train", "val", "test"] = ""
    """The rows of a table that are evaluated, where it has rows of several splits."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip: the mean of the logits of the image and of its mirror image."""
    batch_size: int = 64
    """Images per batch."""
    loader_workers: int = 2
    """Processes that decode images; 0: decode in this process."""
    device: str = ""
    """Device, such as cuda:1 or cpu; empty: a GPU if there is one."""
    json: str = ""
    """File for the report as JSON; `-` prints it instead of the tables."""
    pictures: str = ""
    """Folder for predictions.png and, where an image has one class, confusion.png; in regression scatter.png."""
    report: str = ""
    """Folder for report.html, a page that needs nothing else: scores, the worst mistakes as pictures, confusions and
    calibration; in regression truth against prediction and the errors."""

    def __post_init__(self) -> None:
        ModelFlags.__post_init__(self)  # super() doesn't find the class that slots made anew
        for name, low in (("batch_size", 1), ("loader_workers", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {low}")
        check_local(report=self.report, pictures=self.pictures, json=self.json)


_COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "classification": ("images", ("recall", "precision", "f1")),
    "segmentation": ("pixels", ("recall", "precision", "iou")),
    "multilabel": ("images", ("recall", "precision", "f1", "average_precision", "threshold")),
    "regression": ("images", ("mae", "rmse", "r2")),
}
"""kind -> what a class's row counts, and its scores."""


def main(argv: Sequence[str]) -> int:
    """Evaluate, print, and write what was asked for."""
    options = parse(
        Options,
        argv,
        prog="python -m jobs.evaluate",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from pipeline.inference.class_report import evaluate_saved
    from pipeline.inference.evaluation_data import open_data
    from pipeline.inference.flip import FlipAveraged
    from pipeline.inference.mistakes import record_for
    from pipeline.inference.trained_model import find_run

    saved = options.open(find_run(options.checkpoint, options.storage))
    data = open_data(
        saved,
        options.data,
        loader_workers=options.loader_workers,
        columns=_columns(options),
        split=options.split,
    )
    device = chosen_device(options.device)
    _make_folders(options)
    options.reestimate(saved, device=device, batch_size=options.batch_size, loader_workers=options.loader_workers)
    if options.tta == "flip":
        saved = replace(saved, model=FlipAveraged(saved.model))
    record = record_for(saved.task) if options.report else None
    observe = record.add if record is not None else lambda batch, logits: None
    report = evaluate_saved(saved, data, device=device, batch_size=options.batch_size, observe=observe)
    used = {
        "data": options.data,
        "split": data.split,
        "samples": data.num_samples,
        "reestimate_bn": options.reestimate_bn,
        "tta": options.tta,
    }
    values = about(saved) | used | report.to_dict()
    if options.json == "-":
        print(json.dumps(values, indent=1))
    else:
        _print(wide_console(), saved, data, report, values)
    if options.json not in ("", "-"):
        Path(options.json).write_text(json.dumps(values, indent=1))
    if options.pictures:
        _write_pictures(Path(options.pictures), saved, data, report, device)
    if record is not None:
        from pipeline.inference.report_page import Evaluated, write_page

        command = f"python -m jobs.evaluate {shlex.join(argv)}"
        found = Evaluated(saved=saved, data=data, report=report, record=record, device=device, command=command)
        place = write_page(found, Path(options.report))
        if options.json != "-":
            print(f"report: {place}")
    return 0


def _columns(options: Options) -> TableColumns:
    return TableColumns(
        path=options.path_column,
        label=options.label_column,
        separator=options.label_separator,
        flags=options.label_columns,
        mask=options.mask_column,
        targets=options.targets,
        split=options.split_column,
    )


def about(saved: SavedModel) -> dict[str, Any]:
    """Return what a report says of the model, as JSON values."""
    return {
        "checkpoint": saved.uri,
        "cursor": saved.state.cursor,
        "model": saved.model_config.name,
        "weights": saved.weights,
        "image_size": saved.preprocessing.image_size,
        "aspect_ratio": saved.preprocessing.aspect_ratio,
    }


def _print(console: Console, saved: SavedModel, data: EvaluationData, report: Report, values: dict[str, Any]) -> None:
    for line in (*saved.notes, *data.notes):
        say(console, f"note: {line}")
    whole = {name: value for name, value in report.metrics.items() if not name.startswith(("iou_", "threshold_"))}
    say(
        console,
        f"{saved.uri}\n{values['model']}, {'moving average' if saved.weights == 'ema' else 'weights'}, "
        f"{saved.preprocessing.size_text} px{_statistics(values['reestimate_bn'])}"
        f"{', mean with the mirror image' if values['tta'] == 'flip' else ''}, "
        f"on {values['samples']} images of {data.source}",
    )
    say(console, "  ".join(f"{name} {value:.4f}" for name, value in whole.items()))
    console.print(class_table(report, saved.kind))


def _statistics(samples: int) -> str:
    return f", BatchNorm re-estimated from {samples} training images" if samples else ""


def class_table(report: Report, kind: str) -> Table:
    """Return a row a class, or a target, with its scores."""
    table = Table(box=SIMPLE_HEAD)
    unit, fields = _COLUMNS[kind]
    for index, column in enumerate(("target" if kind == "regression" else "class", unit, *fields)):
        table.add_column(column.replace("_", " "), justify="right" if index else "left", no_wrap=True)
    for row in report.classes:
        scores = (getattr(row, field) for field in fields)
        table.add_row(row.name, f"{row.count:,}", *("-" if value is None else f"{value:.4f}" for value in scores))
    return table


def _make_folders(options: Options) -> None:
    """Make the folders of what is to be written, before the work that would be lost without them."""
    file = Path(options.json).parent if options.json not in ("", "-") else None
    for flag, folder in (("report", options.report), ("pictures", options.pictures), ("json", file)):
        if not folder:
            continue
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            # Removed at once: a name of its own, since two evaluations may write into one folder.
            with NamedTemporaryFile(dir=folder, prefix=".probe-"):
                pass
        except OSError as error:
            raise ValueError(
                f"--{flag}: {folder} can't be written to ({error.strerror}); name another place"
            ) from error


def _write_pictures(folder: Path, saved: SavedModel, data: EvaluationData, report: Report, device: Any) -> None:
    import torch

    from pipeline.training.evaluation import predicted
    from pipeline.training.figures import confusion_picture, scatter_picture

    folder.mkdir(parents=True, exist_ok=True)
    if report.confusion is not None:
        (folder / "confusion.png").write_bytes(confusion_picture(report.confusion, saved.task.classes))
    config = saved.trainer_config()
    batches = data.batches(image_size=saved.preprocessing.image_size, batch_size=config.eval_batch_size)
    found = iter(predicted(saved.model, batches, data.config, config, device=device))
    batch, logits = next(found)
    (folder / "predictions.png").write_bytes(saved.task.picture(batch, logits))
    if saved.kind == "regression":
        pairs = [(batch.labels, logits.cpu()), *((one.labels, values.cpu()) for one, values in found)]
        truth, values = (torch.cat(part) for part in zip(*pairs, strict=True))
        (folder / "scatter.png").write_bytes(scatter_picture(truth, values, saved.task.classes))


if __name__ == "__main__":
    run_main(main)

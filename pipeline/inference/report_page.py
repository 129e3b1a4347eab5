"""An evaluation's report as one HTML page that needs nothing else: scores and mistakes, by kind of task."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from datasets.loading.samples import Request, Samples, View
from datasets.transforms.formats import IGNORED
from pipeline.inference.class_report import Report
from pipeline.inference.evaluation_data import EvaluationData
from pipeline.inference.mistakes import ClassRecord, MaskRecord, MultilabelRecord, NumberRecord, Record
from pipeline.inference.multilabel_gallery import multilabel_gallery
from pipeline.inference.number_report import SCORES, number_text, targets_of, worst_of_all
from pipeline.inference.report_parts import Gallery, calibration, label_gallery, mask_gallery
from pipeline.inference.trained_model import SavedModel
from pipeline.task_config import RegressionConfig
from pipeline.training.evaluation import logits_of
from pipeline.training.figures import as_rgb, coloured_mask, palette
from pipeline.training.segmentation import SegmentationTask

PICTURE_SIDE = 144
"""Longest side of a picture, in pixels."""
MOST_IN_MATRIX = 32
"""Classes up to which all pairs are in a table; of more, the most confused pairs are listed."""
MOST_PAIRS = 60
_NAMES = {
    "accuracy": "accuracy",
    "map": "mean average precision",
    "micro_f1": "micro F1",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "calibration_error": "calibration error",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "loss": "loss",
}
"""Metric -> what the page calls it, in its order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """An evaluation that is to be shown."""

    saved: SavedModel
    data: EvaluationData
    report: Report
    record: Record
    device: torch.device
    command: str


def write_page(found: Evaluated, folder: Path) -> Path:
    """Write `report.html` into a folder, which is made; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page(found), encoding="utf-8")
    return path


def page(found: Evaluated) -> str:
    """Return the page."""
    place = found.data.config.val.rstrip("/")

    def name_of(number: int) -> str:
        return found.data.reader.describe(number).removeprefix(f"{place}/")

    record = found.record
    if isinstance(record, NumberRecord):
        template, numbers, values = _numbers(found, record, name_of)
    else:
        template, numbers, values = _classes(found, record, name_of)
    templates = FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    return (
        Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .get_template(template)
        .render(
            title=f"{found.saved.model_config.name} on {found.data.source}",
            facts=_facts(found),
            keys={number: found.data.reader.key(number) for number in numbers},
            pictures=(_triples if isinstance(record, MaskRecord) else _thumbnails)(found, numbers),
            command=found.command,
            **values,
        )
    )


_Sections = tuple[str, Sequence[int], dict[str, Any]]
"""The template, the samples whose pictures it shows, and what else it is rendered with."""


def _classes(found: Evaluated, record: ClassRecord, name_of: Callable[[int], str]) -> _Sections:
    """Return the sections of a task that has classes."""
    classes, dense = found.saved.task.classes, isinstance(record, MaskRecord)
    gallery = _gallery(found, record, name_of)
    values, confusion = found.report.metrics, found.report.confusion
    things = "pixels" if dense else "images" if found.saved.task.exclusive else "labels"
    return (
        "report_classes.html.jinja",
        gallery.numbers,
        {
            "dense": dense,
            "unit": "pixels" if dense else "images",
            "several": confusion is None,
            "tiles": [(_NAMES[name], f"{values[name]:.4f}") for name in _NAMES if name in values],
            "gallery": gallery,
            "classes": classes,
            "rows": sorted(found.report.classes, key=lambda row: (row.iou if dense else row.f1) or 0.0),
            "index_of": {name: index for index, name in enumerate(classes)},
            "colours": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(len(classes)).tolist()],
            "matrix": None if confusion is None or len(classes) > MOST_IN_MATRIX else _matrix(confusion, gallery),
            "pairs": [] if confusion is None else _pairs(confusion, gallery, classes),
            "calibration": calibration(record.bins, things),
            "predictions": things,
        },
    )


def _numbers(found: Evaluated, record: NumberRecord, name_of: Callable[[int], str]) -> _Sections:
    """Return the sections of a regression. Errors of several targets have no mean that says much: each has its own."""
    task, values = found.saved.task, found.report.metrics
    assert isinstance(task.config, RegressionConfig)
    deviations = task.config.target_std
    several = len(task.classes) > 1
    tiles = [("mean R²" if several else "R²", f"{values['r2']:.4f}"), ("loss", f"{values['loss']:.4f}")]
    if not several:
        tiles = [(name.upper(), number_text(values[name], deviations[0], 4)) for name in ("mae", "rmse")] + tiles
    targets = targets_of(record, found.report.classes, deviations, name_of)
    worst = worst_of_all(record, task.classes, deviations, name_of) if several else []
    shown = {one.number for part in (worst, *(target.worst for target in targets)) for one in part}
    return (
        "report_numbers.html.jinja",
        sorted(shown),
        {
            "tiles": tiles,
            "score_names": SCORES,
            "targets": targets,
            "worst": worst,
            "data_images": found.data.num_samples,
        },
    )


def _gallery(found: Evaluated, record: ClassRecord, name_of: Callable[[int], str]) -> Gallery:
    if isinstance(record, MaskRecord):
        return mask_gallery(record, found.saved.task.classes, name_of)
    if isinstance(record, MultilabelRecord):
        return multilabel_gallery(record, found.report.classes, name_of)
    return label_gallery(record, found.saved.task.classes, name_of)


def _facts(found: Evaluated) -> list[tuple[str, str]]:
    saved = found.saved
    weights = "moving average of the weights" if saved.weights == "ema" else "weights"
    return [
        ("checkpoint", f"{saved.uri} ({weights}, {saved.state.cursor:,} samples seen)"),
        ("data", f"{found.data.num_samples:,} images of {found.data.source}"),
        ("input", f"{saved.preprocessing.size_text} px, crop {saved.preprocessing.eval_crop}"),
        ("made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        *(("note", line) for line in (*saved.notes, *found.data.notes)),
    ]


def _matrix(confusion: torch.Tensor, gallery: Gallery) -> list[list[dict[str, Any]]]:
    """Return the cells [truth][prediction]: count, share of the truth's, and whether there are pictures."""
    counts = confusion.tolist()
    return [
        [
            {"count": count, "share": count / max(1, sum(row)), "linked": (truth, guess) in gallery.pairs}
            for guess, count in enumerate(row)
        ]
        for truth, row in enumerate(counts)
    ]


def _pairs(confusion: torch.Tensor, gallery: Gallery, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most confused pairs of classes, most first."""
    wrong = confusion.clone().fill_diagonal_(0)
    count, flat = wrong.flatten().topk(min(MOST_PAIRS, wrong.numel()))
    of_class = confusion.sum(1).clamp_min(1)
    return [
        {
            "truth": truth,
            "guess": guess,
            "count": many,
            "share": many / int(of_class[truth]),
            "linked": (truth, guess) in gallery.pairs,
        }
        for many, (truth, guess) in zip(
            count.tolist(), (divmod(one, len(classes)) for one in flat.tolist()), strict=True
        )
        if many
    ]


def _thumbnails(found: Evaluated, numbers: Sequence[int]) -> Mapping[int, str]:
    return {number: _thumbnail(found.saved, found.data.reader.read(number).data) for number in numbers}


def _thumbnail(saved: SavedModel, data: bytes) -> str:
    """Return a whole image, made smaller, as a data URL."""
    return _as_url(Image.fromarray(as_rgb(saved.preprocessing.whole(data))), PICTURE_SIDE)


def _as_url(image: Image.Image, side: int) -> str:
    kind = "PNG" if max(image.size) <= side else "JPEG"
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def _triples(found: Evaluated, numbers: Sequence[int]) -> Mapping[int, str]:
    """Return image, truth and prediction side by side, as the model sees them, by sample; predicted once more."""
    saved, made, task = found.saved, dict[int, str](), found.saved.task
    assert isinstance(task, SegmentationTask)
    samples = Samples({0: found.data.reader}, found.data.config)
    for start in range(0, len(numbers), 16):
        ids = np.array(numbers[start : start + 16])
        view = View(image_size=saved.preprocessing.image_size, training=False)
        batch = samples.batch(Request(view, ids, ids, np.zeros_like(ids)))
        config = saved.trainer_config(eval_batch_size=len(ids))
        logits, _ = logits_of(saved.model.to(found.device), batch.images, config, found.device, len(ids))
        truth = task.masks(batch)
        guess = logits.argmax(1).to("cpu", torch.uint8).masked_fill(truth == IGNORED, IGNORED)
        for row, number in enumerate(batch.stream_index.tolist()):
            made[number] = _triple(batch.images[row], truth[row], guess[row], len(task.classes))
    return made


def _triple(image: torch.Tensor, truth: torch.Tensor, guess: torch.Tensor, num_classes: int) -> str:
    parts = (
        as_rgb(image.permute(1, 2, 0).numpy()),
        *(coloured_mask(one.numpy(), num_classes) for one in (truth, guess)),
    )
    gap = np.full((truth.shape[0], max(2, truth.shape[1] // 40), 3), 255, dtype=np.uint8)
    return _as_url(Image.fromarray(np.concatenate([parts[0], gap, parts[1], gap, parts[2]], 1)), 4 * PICTURE_SIDE)

"""Speed of R workers, predicted from steps that `jobs.benchmark gpu` has measured on one GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from jobs.benchmark.gpu.speed import OURS
from jobs.common.parsing import UsageError
from model.config import ModelConfig
from model.cost import count_parameters
from model.factory import build_model

_BYTES = 4
"""Of a gradient: they are added up in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """A step of one GPU."""

    image_size: int
    batch_size: int
    step_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedSpeed:
    """One stage on R workers, of which each keeps the batch that was measured."""

    image_size: int
    batch_size: int
    """Of all workers."""
    step_ms: float
    """Measured, of one worker."""
    all_reduce_ms: float
    """Predicted, of a ring: 2 (R - 1) / R times the gradients' bytes, by the bandwidth."""
    images_per_s: float
    """Of all workers, if the all-reduce hides behind nothing: the least to expect."""
    efficiency: float
    """Share of R times one worker's speed."""


def read_steps(path: Path, model: str) -> list[MeasuredStep]:
    """Return the steps of this project's trainer in the JSON of `jobs.benchmark gpu --json`.

    Raises:
        UsageError: it is no such file, or of another model.
    """
    try:
        report: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in report["parts"]["speed"]["rows"] if row["contender"] == OURS]
        steps = [MeasuredStep(**{name: row[name] for name in MeasuredStep.__dataclass_fields__}) for row in rows]
        measured = report["model"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = str(error) if isinstance(error, OSError) else "it has no steps"
        raise UsageError(f"--measured {path}: {reason}; `jobs.benchmark gpu --json` writes it") from error
    if measured != model:
        raise UsageError(f"--measured {path}: its steps are of {measured}, and the recipe's model is {model}")
    return steps


def predict(
    steps: Sequence[MeasuredStep], model: ModelConfig, *, classes: int, workers: int, gb_per_s: float
) -> list[PredictedSpeed]:
    """Predict each stage's speed on so many workers.

    Args:
        steps: of one worker.
        model: whose gradients are added up.
        classes: that its head tells apart.
        workers: R.
        gb_per_s: bandwidth of the all-reduce (10^9 bytes/s), as nccl-tests print it (`busbw`).
    """
    with torch.device("meta"):
        num_bytes = _BYTES * count_parameters(build_model(model, num_classes=classes))
    reduce_ms = 2 * (workers - 1) / workers * num_bytes / (gb_per_s * 1e6)
    return [
        PredictedSpeed(
            image_size=step.image_size,
            batch_size=step.batch_size * workers,
            step_ms=step.step_ms,
            all_reduce_ms=reduce_ms,
            images_per_s=1000 * step.batch_size * workers / (step.step_ms + reduce_ms),
            efficiency=step.step_ms / (step.step_ms + reduce_ms),
        )
        for step in steps
    ]


def as_table(name: str, predicted: Sequence[PredictedSpeed], *, workers: int, gb_per_s: float) -> Table:
    """The predictions for the terminal."""
    table = Table(
        title=f"{name} on {workers} workers, predicted from measured steps of one; all-reduce at {gb_per_s:g} GB/s, "
        "after the step",
        title_justify="left",
    )
    for column in ("px", "batch", "step ms", "all-reduce ms", "images/s", "efficiency"):
        table.add_column(column, justify="right")
    for row in predicted:
        times = (f"{row.step_ms:.1f}", f"{row.all_reduce_ms:.2f}")
        table.add_row(
            str(row.image_size), str(row.batch_size), *times, f"{row.images_per_s:.0f}", f"{row.efficiency:.1%}"
        )
    return table

"""A run in words, for the top of its MLflow page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from datasets.transforms.shape import format_size
from pipeline.checkpoint.catalog import CheckpointRow
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import DecisionRecord
from pipeline.schedule.stages import TrainingStage, Workers, worker_range
from pipeline.training.class_scores import ClassRow


def summary(stage: TrainingStage, aspect_ratio: float) -> str:
    """Return one line on a stage, of images of this width / height."""
    return (
        f"{format_size(stage.image_size, aspect_ratio)} px, RandAugment {stage.randaugment_magnitude:.3g}, "
        f"Mixup {stage.mixup_alpha:.3g}, CutMix {stage.cutmix_alpha:.3g}, dropout {stage.dropout:.3g}, "
        f"batch {stage.batch_size}, {stage.epochs:g} epochs"
        + (f", {other_sizes(stage)}" if other_sizes(stage) else "")
        + (f", crops of {stage.crop_area[0]:g} to {stage.crop_area[1]:g} of the area" if stage.crop_area else "")
        + (", classifier and norms alone (FixRes)" if stage.fixres else "")
        + (f", learning rate times {stage.lr_factor:g}" if stage.lr_factor != 1 else "")
        + (f", {format_workers(stage.num_workers)}" if stage.num_workers else "")
    )


def other_sizes(stage: TrainingStage) -> str:
    """Return what a stage does with image sizes besides its own; empty: nothing."""
    if stage.low_frequency_of:
        return f"low frequencies of {stage.low_frequency_of} px"
    sizes = ", ".join(map(str, stage.random_sizes))
    return f"{stage.random_size_share:.0%} of the steps at {sizes} px" if sizes else ""


def format_workers(number: Workers) -> str:
    """Return `1 worker`, `2 workers`, or of a range `1 to 2 workers`."""
    low, high = worker_range(number)
    return f"{low} to {high} workers" if low < high else f"{low} worker{'' if low == 1 else 's'}"


def describe(config: TrainConfig) -> str:
    """Return Markdown: the model, the data, the stages as a table, and how to resume."""
    others = any(other_sizes(stage) for stage in config.stages)
    augments = any(stage.randaugment_magnitude for stage in config.stages)
    policy = f", RandAugment's policy {config.data.randaugment_policy}" if augments else ""
    rows = [
        f"| {index} | {format_size(stage.image_size, config.data.aspect_ratio)} "
        f"| {stage.randaugment_magnitude:.3g} | {stage.mixup_alpha:.3g} "
        f"| {stage.cutmix_alpha:.3g} | {stage.dropout:.3g} | {stage.batch_size} | {stage.epochs:g} |"
        + (f" {other_sizes(stage)} |" if others else "")
        for index, stage in enumerate(config.stages, start=1)
    ]
    return "\n".join(
        [
            f"**{config.model.name}** on `{config.data.train}`, seed {config.seed}, "
            f"{config.optimizer.optimizer}{policy}.",
            "",
            "| stage | px | RandAugment | Mixup | CutMix | dropout | batch | epochs |" + others * " other sizes |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|" + others * "---|",
            *rows,
            "",
            f"Checkpoints: `{config.storage}/{config.name}/checkpoints`. Submitting the same name again resumes.",
        ]
    )


def format_decision(record: DecisionRecord) -> str:
    """Return one line on a recorded decision."""
    decision = record.decision
    who = f", asked by {decision.asked_by}" if decision.asked_by else ""
    why = f": {decision.reason}" if decision.reason else ""
    return f"cursor {record.cursor:,}, stage {record.stage + 1}: {decision.words}{who}{why}"


def decision_table(records: Sequence[DecisionRecord]) -> str:
    """Return recorded decisions as JSON that MLflow shows as a table."""
    columns = ["time", "cursor", "stage", "decision", "asked by", "reason"]
    rows = []
    for cursor, stage, decision in records:
        at = datetime.fromtimestamp(decision.time_s, UTC).isoformat(timespec="seconds") if decision.time_s else ""
        rows.append([at, cursor, stage + 1, decision.words, decision.asked_by, decision.reason])
    return json.dumps({"columns": columns, "data": rows})


def class_table(rows: Sequence[ClassRow]) -> str:
    """Return the scores of each class as JSON that MLflow shows as a table; empty where one is undefined."""
    scores = ["recall", "precision", "f1", "iou"]
    if any(row.mae is not None for row in rows):
        scores = ["mae", "rmse", "r2"]
    if any(row.threshold is not None for row in rows):
        scores += ["average_precision", "threshold"]
    data = [[row.name, row.count, *(_rounded(getattr(row, score)) for score in scores)] for row in rows]
    return json.dumps({"columns": ["class", "count", *scores], "data": data})


def _rounded(score: float | None) -> float | str:
    return "" if score is None else round(score, 4)


def checkpoint_table(rows: Sequence[CheckpointRow], where: str) -> str:
    """Return checkpoints as JSON that MLflow shows as a table, the newest first."""
    columns = ["cursor", "stages done", "MB", "metrics", "state", "URI"]
    data = [
        [
            row.cursor,
            "" if row.stage is None else row.stage,
            round(row.bytes / 1e6, 1),
            ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in row.metrics.items()),
            row.problem or "valid",
            f"{where}/{row.key}",
        ]
        for row in reversed(rows)
    ]
    return json.dumps({"columns": columns, "data": data})


def stage_report(number: int, result: dict[str, float], metric: str) -> dict[str, Any]:
    """Return what a sweep hears of a stage, counted from 1; `value` is what trials are compared by."""
    return {"stage": number, "value": result.get(metric), "metrics": result}

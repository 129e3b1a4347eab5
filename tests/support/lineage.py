"""Datasets and checkpoints, as a run tells MLflow of them."""

from __future__ import annotations

from dataclasses import replace

from infra.tracking.lineage import CheckpointModel, Dataset

TRAIN = Dataset(
    name="elpv/train",
    digest="a" * 32,
    source="s3://data/elpv/train",
    context="training",
    columns={"image": "binary", "label": "long"},
    profile={"num_rows": 100},
)
VAL = replace(TRAIN, name="elpv/val", digest="b" * 32, source="/data/elpv/val", context="validation")


def checkpoint(cursor: int, accuracy: float | None = None, *, run: str = "solar") -> CheckpointModel:
    return CheckpointModel(
        name=f"{run}-{cursor}",
        uri=f"s3://runs/{run}/checkpoints/{cursor}-e1",
        step=cursor,
        params={"stage": "1", "image_size": "128"},
        tags={"run": run},
        metrics={} if accuracy is None else {"val/accuracy": accuracy, "val/loss": float("nan")},
        datasets=[(VAL.name, VAL.digest)],
    )

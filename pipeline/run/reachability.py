"""Checks that a submitted job can reach data, storage and tracking: its working folder is a temporary copy."""

from __future__ import annotations

from pathlib import Path

from infra.tracking.mlflow_run import sqlite_path
from model.pretrained import NAMED_WEIGHTS
from pipeline.config import TrainConfig


def check_reachable(config: TrainConfig) -> None:
    """Check that a submitted job finds its data, and leaves its results where they stay.

    Raises:
        ValueError: a relative folder; with the flag to give instead.
    """
    for name in ("data.train", "data.val", "storage", "resume_from", "model.init_from"):
        value: object = config
        for part in name.split("."):
            value = getattr(value, part)
        if name == "model.init_from" and value in NAMED_WEIGHTS:
            continue
        for place in str(value or "").split("::"):
            if place and "://" not in place and not Path(place).is_absolute():
                raise ValueError(
                    f"{name} is {place!r}: a submitted job runs in a copy of this folder that is deleted after it; "
                    f"give --{name.replace('_', '-')} as s3://BUCKET/PREFIX, or as a whole path that all nodes share"
                )
    database = sqlite_path(config.tracking.uri)
    if database is not None and not database.is_absolute():
        raise ValueError(
            f"tracking.uri is {config.tracking.uri}: a submitted job runs in a copy of this folder that is deleted "
            "after it; set MLFLOW_TRACKING_URI to an MLflow server (http://HOST:5000)"
        )

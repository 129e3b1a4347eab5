"""A run's record in MLflow, after its processes: brought up to date, or ended."""

from __future__ import annotations

from dataclasses import replace

from infra.storage.open import open_storage
from infra.tracking.ended import RecordState, end_record, sync_record
from pipeline.config import TrainConfig


def synced_record(config: TrainConfig) -> RecordState:
    """Send what MLflow lacks of a run that is trained to its end; return how its record is now.

    Raises:
        StorageError: the run's folder can't be read.
    """
    return sync_record(config.tracking, config.name, open_storage(config.folder))


def close_record(config: TrainConfig, status: str, *, uri: str = "", timeout: float = 30.0) -> bool:
    """End the record of a run, and send what its workers spooled; return whether MLflow has taken it.

    Args:
        config: the run's.
        status: `FINISHED`, `FAILED` or `KILLED`.
        uri: where the record is kept by now; empty: where the config says.
        timeout: for MLflow, in seconds.
    """
    tracking = replace(config.tracking, uri=uri or config.tracking.uri)
    return end_record(tracking, config.name, open_storage(config.folder), status, timeout)

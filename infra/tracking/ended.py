"""The records of runs that have ended: what MLflow was not told before their processes ended, or were killed."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

from infra.storage.base import Storage
from infra.tracking.config import TrackingConfig, explained
from infra.tracking.mlflow_run import NAME_TAG, make_client, run_by_key, runs_below, sqlite_path
from infra.tracking.row_log import ended_status
from infra.tracking.spool import spooled_status, stored_key
from infra.tracking.tracker import Tracker

log = logging.getLogger(__name__)

RecordState = Literal["complete", "sent", "unsent", "open", "unknown"]
"""How the record of a run that is trained to its end is. complete: MLflow had all of it, or has no such run. sent: it
has all of it now. unsent: it doesn't take what is missing. open: whoever trained the run was killed, or failed, between
its last checkpoint and the end of its record, or is on the way there: only a worker group can make what is missing, and
does when the run is started again. unknown: MLflow gives no answer, and the run's folder doesn't say."""


def sync_record(config: TrackingConfig, run_name: str, storage: Storage) -> RecordState:
    """Send what a run that is trained to its end could not send; return how its record is now.

    MLflow is asked only where the run's folder doesn't know whether the run was finished: what people or other servers
    say of one that was doesn't open it again.

    Raises:
        StorageError: the run's folder can't be read.
    """
    status = spooled_status(storage)
    if status is None and ended_status(storage) != "FINISHED" and (key := stored_key(storage)):
        try:
            status = _status(config, key)
        except Exception as error:
            log.warning("whether the record of %s is complete is not known: %s", run_name, explained(config, error))
            return "unknown"
    if status not in (None, "FINISHED"):
        return "open"
    sent = send_unsent(config, run_name, storage)
    return "complete" if sent is None else "sent" if sent else "unsent"


def _status(config: TrackingConfig, key: str) -> str | None:
    """Return the status of the MLflow run that carries the key; None: there is none. Raises what MLflow raises."""
    path = sqlite_path(config.uri)
    if path is not None and not path.is_file():
        return None  # a client would make it
    client = make_client(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    run = run_by_key(client, experiment.experiment_id, key) if experiment else None
    return str(run.info.status) if run else None


def end_record(config: TrackingConfig, run_name: str, storage: Storage, status: str, timeout: float = 30.0) -> bool:
    """End the record of a run that was left open, as it might have gone on; return whether MLflow has taken it."""
    return Tracker(replace(config, system_metrics=False), run_name, storage=storage).close(status, timeout)


def send_unsent(config: TrackingConfig, run_name: str, storage: Storage, timeout: float = 30.0) -> bool | None:
    """Send what an ended run could not send, from its spool in `storage`.

    Returns whether MLflow has all of it now; None: it had all before.
    """
    status = spooled_status(storage)
    if status is None:
        return None
    return end_record(config, run_name, storage, status, timeout)


def running_below(uri: str, parent_run_id: str) -> set[str]:
    """Return the names of the runs below a parent that MLflow takes for running. Raises what MLflow raises."""
    client = make_client(uri)
    below = runs_below(client, parent_run_id, "attributes.status = 'RUNNING'")
    return {run.data.tags.get(NAME_TAG, "") for run in below}

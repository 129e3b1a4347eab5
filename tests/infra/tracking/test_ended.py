"""The record of a run that is trained to its end: closed by whoever sees that it is not, once, and left alone after."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from infra.storage.base import Storage, StorageAwayError
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.ended import end_record, running_below, sync_record
from infra.tracking.mlflow_run import make_client
from infra.tracking.row_log import RowLog, ended_status
from infra.tracking.tracker import Tracker
from tests.support.killing import ROOT, kill_family

AWAY = "http://127.0.0.1:9"


@pytest.fixture
def config(sqlite_uri: str) -> TrackingConfig:
    return TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "run")


def record_of(uri: str, name: str) -> Any:
    client = make_client(uri)
    experiment = client.get_experiment_by_name("crescendo").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`crescendo.run` = '{name}'")
    return run


def test_a_record_whose_process_was_killed_is_open_until_it_is_ended(
    config: TrackingConfig, storage: Storage, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "cursor"
    command = [sys.executable, "-m", "tests.support.training_process"]
    process = subprocess.Popen(
        [*command, config.uri, str(tmp_path / "run"), str(checkpoint), "100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not checkpoint.exists() or not _is_there(config):
        process.stdout.readline()
    kill_family(process)
    assert record_of(config.uri, "killed-run").info.status == "RUNNING"
    assert sync_record(config, "killed-run", storage) == "open"
    assert end_record(config, "killed-run", storage, "FINISHED")
    ended = record_of(config.uri, "killed-run")
    assert sync_record(config, "killed-run", storage) == "complete"
    assert record_of(config.uri, "killed-run").info.end_time == ended.info.end_time
    steps = [point.step for point in make_client(config.uri).get_metric_history(ended.info.run_id, "train/loss")]
    assert steps == sorted(set(steps))


def _is_there(config: TrackingConfig) -> bool:
    experiment = make_client(config.uri).get_experiment_by_name("crescendo")
    return experiment is not None and bool(make_client(config.uri).search_runs([experiment.experiment_id]))


@pytest.mark.parametrize(("status", "state"), [("FINISHED", "complete"), ("FAILED", "open"), ("KILLED", "open")])
def test_a_run_that_is_trained_to_its_end_is_recorded_as_finished_and_nothing_else(
    config: TrackingConfig, storage: Storage, status: str, state: str
) -> None:
    tracker = Tracker(config, "ended", storage=storage)
    tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.close(status, 60)
    assert sync_record(config, "ended", storage) == state


def test_what_waits_with_the_runs_end_is_sent_and_without_it_the_record_is_open(
    config: TrackingConfig, storage: Storage
) -> None:
    away = replace(config, uri=AWAY)
    tracker = Tracker(away, "spooled", storage=storage)
    tracker.log_metrics({"loss": 0.5}, 1)
    tracker.persist(0.1)
    assert sync_record(away, "spooled", storage) == "open"  # as after a kill at this place
    assert not tracker.close("FINISHED", 0.5)
    assert sync_record(config, "spooled", storage) == "sent"
    assert record_of(config.uri, "spooled").info.status == "FINISHED"
    assert sync_record(config, "spooled", storage) == "complete"


def test_a_record_that_is_nowhere_or_can_not_be_looked_up_is_left_alone(
    config: TrackingConfig, storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sync_record(config, "never", storage) == "complete"
    tracker = Tracker(config, "elsewhere", storage=storage)
    tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.close("KILLED", 60)
    assert sync_record(replace(config, uri=f"sqlite:///{tmp_path}/other.db"), "elsewhere", storage) == "complete"
    assert not (tmp_path / "other.db").exists()
    assert sync_record(replace(config, experiment="another"), "elsewhere", storage) == "complete"
    assert caplog.text == ""
    assert sync_record(replace(config, uri=AWAY), "elsewhere", storage) == "unknown"
    assert f"the record of elsewhere is complete is not known: tracking.uri is {AWAY}: no answer" in caplog.text


def test_runs_below_a_parent_that_nobody_has_ended_are_found_on_all_pages(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    parent = Tracker(config, "study", storage=open_storage(tmp_path / "study"))
    parent.set_tags({"kind": "sweep"})
    assert parent.flush(60)
    assert parent.run_id is not None
    for name, status in (("study-000", "FINISHED"), ("study-001", ""), ("study-002", "")):
        below = replace(config, parent_run_id=parent.run_id)
        trial = Tracker(below, name, storage=open_storage(tmp_path / name))
        trial.log_metrics({"loss": 0.5}, 1)
        assert trial.close(status, 60) if status else trial.flush(60)
        trial.abandon()
    monkeypatch.setattr(MlflowClient, "search_runs", partialmethod(MlflowClient.search_runs, max_results=1))
    assert running_below(config.uri, parent.run_id) == {"study-001", "study-002"}
    parent.abandon()


def test_a_record_that_was_ended_is_complete_whatever_mlflow_says_of_it_later(
    config: TrackingConfig, storage: Storage, tmp_path: Path
) -> None:
    tracker = Tracker(config, "ended", storage=storage)
    tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.close("FINISHED", 60)
    client, run = make_client(config.uri), record_of(config.uri, "ended")
    client.set_terminated(run.info.run_id, "KILLED")  # by hand, so that no comparison takes it
    assert sync_record(config, "ended", storage) == "complete"
    assert sync_record(replace(config, uri=AWAY), "ended", storage) == "complete"  # which isn't asked
    further = Tracker(config, "ended", storage=storage)  # as a study's trial that goes on with its next stage
    further.log_metrics({"loss": 0.4}, 2)
    assert further.flush(60)
    further.abandon()
    assert sync_record(config, "ended", storage) == "open"


def test_a_folder_that_can_not_be_read_is_an_error(config: TrackingConfig, tmp_path: Path) -> None:
    class Unreadable(LocalStorage):
        def read_with_etag(self, key: str) -> tuple[bytes, str]:
            raise StorageAwayError(f"{self.location(key)} can't be reached")

    with pytest.raises(StorageAwayError):
        sync_record(config, "away", Unreadable(tmp_path))


def test_an_end_is_written_down_by_the_last_owner_alone(storage: Storage) -> None:
    old, new = RowLog(storage, 1), RowLog(storage, 2)
    old.open()
    new.open()
    old.end("FINISHED")  # as of a process that was paused before it could
    assert ended_status(storage) == ""
    new.end("FINISHED")
    assert ended_status(storage) == "FINISHED"
    RowLog(storage, 2).open()
    assert ended_status(storage) == ""


def test_a_record_that_mlflow_has_is_ended_whatever_storage_says(config: TrackingConfig, tmp_path: Path) -> None:
    class Gone(LocalStorage):
        is_away = False

        def write_if_match(self, key: str, data: bytes, etag: str) -> str | None:
            if self.is_away:
                raise StorageAwayError(f"{self.location(key)} can't be reached")
            return super().write_if_match(key, data, etag)

    storage = Gone(tmp_path / "run")
    tracker = Tracker(config, "ended", storage=storage)
    tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.flush(60)
    storage.is_away = True
    assert tracker.close("FINISHED", 60)
    assert record_of(config.uri, "ended").info.status == "FINISHED"
    assert sync_record(config, "ended", storage) == "complete"  # MLflow was asked

"""What waits in storage to be sent to MLflow runs nothing, and takes no file of this machine with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig, prepare
from infra.tracking.mlflow_run import make_client
from infra.tracking.spool import KEY_FILE, SPOOL_FILE
from infra.tracking.tracker import Tracker


@pytest.mark.parametrize("name", [KEY_FILE, SPOOL_FILE])
def test_tracking_files_with_a_pickle_stop_nothing(tmp_path: Path, evil: bytes, name: str, sqlite_uri: str) -> None:
    storage = open_storage(tmp_path / "run")
    storage.write(name, evil)
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05), "x", storage=storage)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.close("FINISHED", timeout=30)


@pytest.mark.parametrize("path", ["../../up.txt", "/etc/cron.d/evil", "a/../../up.txt"])
def test_a_spool_sends_no_file_of_this_machine_and_leaves_no_folder(
    tmp_path: Path, sqlite_uri: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    lines = [{"file": "stolen.txt", "local": str(secret)}, {"file": path, "data": "aHVudGVyMg=="}]
    storage = open_storage(tmp_path / "run")
    storage.write(SPOOL_FILE, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    config = TrackingConfig(uri=sqlite_uri, artifact_location=str(tmp_path / "artifacts"), system_metrics=False)
    prepare(config)
    tracker = Tracker(config, "x", storage=storage)
    tracker.log_artifact_bytes("fine.txt", b"fine")
    assert tracker.close("FINISHED", timeout=30)
    assert tracker.run_id
    assert [item.path for item in make_client(sqlite_uri).list_artifacts(tracker.run_id)] == ["fine.txt"]
    assert not list(tmp_path.rglob("up.txt"))
    assert "corrupt line" in caplog.text

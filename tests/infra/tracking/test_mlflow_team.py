"""The MLflow server for a team, for real: PostgreSQL, users and passwords, artifacts through it into S3."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.devstack.server import free_ports
from infra.devstack.servers import MlflowServer
from infra.mlflow_serve import settings
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig, check
from infra.tracking.errors import TrackingError
from infra.tracking.lineage import model_name
from infra.tracking.mlflow_run import make_client
from infra.tracking.ranking import best_checkpoint
from infra.tracking.tracker import Tracker
from tests.support.lineage import TRAIN, VAL, checkpoint
from tests.support.postgres import PASSWORD, PostgresServer, running_postgres
from tests.support.servers import S3Server


class TeamServer(MlflowServer):
    """`python -m infra.mlflow_serve`."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "infra.mlflow_serve", "--port", str(self._port), "--workers", "1"]


def test_without_its_settings_it_says_which(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MLFLOW_BACKEND_STORE_URI, MLFLOW_ARTIFACTS must be set"):
        settings({"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "x" * 12}, tmp_path)


@pytest.mark.soak
def test_a_run_with_a_password_is_kept_in_postgresql_and_s3(
    s3_server: S3Server, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_postgres() as postgres:
        check_team(postgres, s3_server, s3_uri, tmp_path, monkeypatch)


def check_team(
    postgres: PostgresServer, s3_server: S3Server, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run reaches a server of `mlflow_serve`, which keeps it in the database and in S3."""
    secrets = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a-long-password"}
    places = {"MLFLOW_ARTIFACTS": f"{s3_uri}/mlflow", "PYTHONPATH": str(Path(__file__).parents[3])}
    server = TeamServer(
        tmp_path / "mlflow",
        port=free_ports(1),
        backend=postgres.uri,
        extra_environment=secrets | places | s3_server.client_environment(),
    )
    server.start()
    try:
        config = TrackingConfig(uri=server.url, system_metrics=False, send_interval_s=0.05)
        with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            check(config)
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
        for name in s3_server.client_environment():
            monkeypatch.delenv(name)  # a client needs no keys of the artifacts' store
        tracker = Tracker(config, "of-a-team", storage=open_storage(tmp_path / "of-a-team"))
        tracker.log_metrics({"train/loss": 0.5}, step=1)
        tracker.log_artifact_bytes("report.md", b"fine")
        tracker.log_params({LONGEST: "x" * 10_000, "Größe 📏": "📏" * 4000})
        tracker.set_tags({LONGEST: "📏" * 9000})
        tracker.log_metrics({LONGEST: 1.0, "val/Überlänge/f1": float("inf")}, step=1)
        tracker.log_metrics({"val/accuracy": 0.25}, step=24)
        tracker.log_inputs([replace(TRAIN, name="x" * 700), VAL])
        tracker.log_checkpoints([replace(checkpoint(24, 0.25), name=model_name("a:b" * 300))])
        assert tracker.close("FINISHED", 60)
        assert PASSWORD not in (server.folder / "server.log").read_text()
        check_taken(server.url, tracker.run_id)
    finally:
        server.stop()
    for name, value in s3_server.client_environment().items():
        monkeypatch.setenv(name, value)
    stored = open_storage(f"{s3_uri}/mlflow").list()
    assert [key for key in stored if key.endswith(f"{tracker.run_id}/artifacts/report.md")]
    asked = "SELECT value FROM metrics WHERE key = 'train/loss'"
    found = subprocess.run(["psql", postgres.uri, "-Atc", asked], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "0.5"


LONGEST = "long/" + "x" * 600


def check_taken(uri: str, run_id: str | None) -> None:
    """PostgreSQL has all of it, cut at MLflow's limits, with the datasets and the model."""
    client = make_client(uri)
    run = client.get_run(run_id)
    name = LONGEST[:250]
    assert (len(run.data.params[name]), len(run.data.tags[name]), run.data.metrics[name]) == (6000, 8000, 1.0)
    assert sorted(len(one.dataset.name) for one in run.inputs.dataset_inputs) == [len(VAL.name), 500]
    found = client.search_runs([run.info.experiment_id], f"datasets.name = '{VAL.name}'")
    assert [one.info.run_id for one in found] == [run_id]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (len(model.name), model.metrics[0].value, model.metrics[0].dataset_name) == (500, 0.25, VAL.name)
    assert len(client.get_metric_history(run_id, "val/accuracy")) == 1
    assert best_checkpoint(TrackingConfig(uri=uri), "val/accuracy").uri == model.tags["checkpoint"]

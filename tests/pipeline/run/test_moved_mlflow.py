"""MLflow is restarted with another address while a run trains: it is told, and its record continues."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.cluster.config import ClusterConfig
from infra.tracking.config import TrackingConfig
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import ControllerClient
from pipeline.run.launch import start_controller
from pipeline.run.preflight import preflight
from pipeline.schedule.decisions import Stop
from pipeline.training_config import TrainerConfig
from tests.support.configs import MakeConfig
from tests.support.servers import MlflowServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[MlflowServer, MlflowServer]]:
    """A server that is on, and one that isn't yet, at two ports over one database."""
    both = MlflowServer(tmp_path / "mlflow"), MlflowServer(tmp_path / "mlflow")
    assert both[0].url != both[1].url
    both[0].start()
    yield both
    for server in both:
        server.stop()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_run_follows_its_mlflow_server_and_each_row_is_there_once(
    make_config: MakeConfig, servers: tuple[MlflowServer, MlflowServer], cluster_address: str
) -> None:
    old, new = servers
    first, second = make_config().stages
    config = make_config(
        name="moved",
        stages=(replace(first, epochs=0.5), replace(second, epochs=10_000)),  # it ends because it is stopped
        cluster=ClusterConfig(num_workers=1),
        tracking=TrackingConfig(uri=old.url, system_metrics=False),
        trainer=TrainerConfig(log_every=1, eval_batch_size=16),
    )
    controller = start_controller(preflight(config))
    try:
        running = controller.run()
        _wait(controller, lambda status: f"MLflow run {old.url}" in " ".join(status.notes))
        old.kill()
        cursor = _cursor(controller.status())
        _wait(controller, lambda status: _cursor(status) > cursor)  # rows wait now
        new.start()
        command = [sys.executable, "-m", "jobs.control", "moved", "tracking", new.url, "--address", cluster_address]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert told.returncode == 0, told.stderr
        assert f"moved: tracking continues at {new.url} from the next decision point" in told.stdout
        _wait(controller, lambda status: f"MLflow run {new.url}" in " ".join(status.notes))
        controller.ask(Stop())
        cursor = _cursor(running.result())
    finally:
        controller.kill()
    _check_record(new.url, cursor)


def _check_record(uri: str, cursor: int) -> None:
    """One run, with one row of each step of 24 samples up to the cursor."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("crescendo")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "KILLED"
    steps = sorted(point.step for point in client.get_metric_history(record.info.run_id, "train/loss"))
    assert steps == list(range(24, cursor + 1, 24))


def _cursor(status: RunStatus) -> int:
    return status.progress.cursor if status.progress else 0


def _wait(controller: ControllerClient, reached: Callable[[RunStatus], bool]) -> None:
    deadline = time.monotonic() + 200
    while not reached(controller.status()):
        assert time.monotonic() < deadline
        time.sleep(0.2)

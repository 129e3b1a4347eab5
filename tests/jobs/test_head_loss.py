"""A submission that follows its run over the loss of the cluster's head."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs.submit
from infra.devstack.server import free_ports
from infra.devstack.servers import RayHead
from infra.storage.open import open_storage
from jobs.common.cli import parse_recipe
from pipeline.checkpoint.format import Snapshot, latest_valid
from pipeline.run.preflight import check_run
from tests.support.runs import train_here
from tests.support.shards import write_shards
from tests.support.trainers import assert_same_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    """A head of two CPUs that is not started yet; killed in the end."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    ports = {"port": free_ports(RayHead.num_ports), "dashboard_port": free_ports(1)}
    head = RayHead(tmp_path / "ray", token_file=token, num_cpus=2, job_environment={"OMP_NUM_THREADS": "1"}, **ports)
    yield head
    head.kill()


def arguments(folder: Path, name: str) -> list[str]:
    stages = [f"--stages.{i}.{what}" for i in range(4) for what in ("epochs=2", "image-size=32")]
    return [
        *("demo_scratch", "--name", name, "--storage", f"{folder}/runs", *stages),
        *("--data.train", f"{folder}/shards", "--data.val", f"{folder}/shards", "--cluster.num-workers", "1"),
        *("--tracking.uri", f"sqlite:///{folder}/mlflow.db", "--tracking.system-metrics", "False"),
        *("--trainer.log-every", "1", "--checkpoint.every-epochs", "1", "--checkpoint.every-s", "0"),
        *("--cluster.standby", "False"),
    ]


def submission(head: RayHead, folder: Path, name: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *arguments(folder, name), "--retries", "2"],
        cwd=ROOT,
        env=environment | head.client_environment() | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def newest(folder: Path, name: str) -> Snapshot | None:
    return latest_valid(open_storage(f"{folder}/runs/{name}"))[0]


def undisturbed(folder: Path) -> Snapshot:
    """Return the end of the run without a cluster, in this process."""
    train_here(check_run(parse_recipe(arguments(folder, "whole"), prog="train")[0]).config)
    end = newest(folder, "whole")
    assert end is not None
    return end


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_submission_follows_its_run_to_the_next_head_and_ends_with_the_same_weights(
    tmp_path: Path, head: RayHead
) -> None:
    write_shards(tmp_path / "shards", [50, 64, 23])
    whole = undisturbed(tmp_path)
    head.start()
    job = submission(head, tmp_path, "lost")
    while (saved := newest(tmp_path, "lost")) is None:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    head.kill()
    head.start()
    said = job.communicate(timeout=400)[0]
    assert job.returncode == 0, said
    end = newest(tmp_path, "lost")
    assert end is not None
    assert "was lost with its head; waiting for a head to start it again (2 retries left)" in said
    resumed = int(said.partition("lost resumes at cursor ")[2].split(":")[0])
    assert saved.state.cursor <= resumed < end.state.cursor == whole.state.cursor
    assert_same_weights(whole, end)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--retries", "-1"], r"^retries is -1: it must be 0 \(off\) or more$"),
        (["--retries", "2", "--detach"], r"^retries needs a submission that follows its job: leave out --detach$"),
    ],
)
def test_a_mistake_with_retries_is_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jobs.submit.main(["demo", *flags])

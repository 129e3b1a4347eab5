"""A run that really trains is watched and steered by the commands, as an operator does it beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.common.cli import operator
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import ControllerClient, ControllerError
from tests.support.shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
LONG = 500
"""Epochs of the stages that end only because somebody says so."""


class LiveRun:
    """`python -m jobs.train` on the tests' cluster: a stage with two workers, then stages with one."""

    def __init__(self, folder: Path, address: str, tracking_uri: str) -> None:
        self.address, self.output, self.looks = address, folder / "output.txt", folder / "looks.jsonl"
        write_shards(folder / "train", [50, 64, 23])
        write_shards(folder / "val", [30])
        stages = [f"--stages.{index}.epochs={epochs}" for index, epochs in enumerate((LONG, LONG, 0.5, 0.5))]
        stages += [f"--stages.{index}.image-size=32" for index in range(4)]
        stages += [f"--stages.{index}.num-workers=1" for index in (1, 2, 3)]
        arguments = [
            *("demo_scratch", "--name", "live", "--storage", str(folder / "runs"), "--cluster.address", address),
            *("--data.train", str(folder / "train"), "--data.val", str(folder / "val"), "--trainer.log-every", "2"),
            *("--tracking.uri", tracking_uri, "--tracking.system-metrics", "False", "--cluster.standby", "False"),
            *("--trainer.eval-every-epochs", "1000", "--adaptive.unused", "saved"),
        ]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", *arguments, *stages], cwd=ROOT, stdout=output, stderr=output
            )
        self.watch: subprocess.Popen[str] | None = None

    def look_beside_it(self) -> None:
        """Start `jobs.status live --watch --json` beside it."""
        with self.looks.open("w") as looks:
            command = ["jobs.status", "live", "--watch", "--json", "--every-s", "0.2", "--address", self.address]
            self.watch = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, stdout=looks, stderr=subprocess.PIPE, text=True
            )

    def wait_for(self, told: str, reached: Callable[[RunStatus], bool], timeout: float = 120) -> None:
        """Wait until the controller's status is as told."""
        deadline = time.monotonic() + timeout
        while True:
            assert self.process.poll() is None, self.output.read_text()
            try:
                if reached(ControllerClient.of_run("live").status()):
                    return
            except ControllerError:
                pass  # it has no controller yet
            assert time.monotonic() < deadline, f"{told}:\n{self.output.read_text()}"
            time.sleep(0.1)

    def told(self, *command: str) -> str:
        """Return what `jobs.control live` answers."""
        return _job("jobs.control", "live", *command, "--address", self.address)

    def status(self) -> dict[str, Any]:
        """Return what `jobs.status live --json` shows."""
        (status,) = json.loads(_job("jobs.status", "live", "--json", "--address", self.address))
        return dict(status)

    def end(self) -> None:
        """End what a failed test has left."""
        for process in filter(None, (self.process, self.watch)):
            if process.poll() is None:
                process.kill()
                process.wait()


def _job(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _in_stage(number: int) -> Callable[[RunStatus], bool]:
    """The stage `number`, from 1, has trained some steps."""

    def reached(status: RunStatus) -> bool:
        progress = status.progress
        return (
            progress is not None and progress.stage == number - 1 and progress.cursor > progress.spans[number - 1].start
        )

    return reached


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_run_that_trains_is_watched_and_told_what_to_do(
    cluster_address: str, sqlite_uri: str, tmp_path: Path
) -> None:
    began_s = time.time()
    run = LiveRun(tmp_path, cluster_address, sqlite_uri)
    try:
        run.wait_for("stage 1 trains", _in_stage(1))
        run.look_beside_it()
        assert "set lr_scale to 0.5: at the next decision point, in about" in run.told("set", "lr_scale", "0.5")
        assert "(stage 1 of 4)" in run.told("advance", "--reason", "flat")
        run.wait_for("stage 2 trains, with another group", _in_stage(2))
        _check_decided(run.status(), began_s)
        run.told("advance")
        assert run.process.wait(120) == 0, run.output.read_text()
        assert run.watch is not None
        assert run.watch.wait(60) == 0, run.watch.communicate()[1]
    finally:
        run.end()
    _check_looks(run.looks)
    head, _, *rows = run.output.read_text().partition("live: efficientnet_v2_tiny, seed 0")[2].strip().splitlines()
    assert [row.split()[head.split().index("workers")] for row in rows[:4]] == ["2", "1", "1", "1"]
    _check_record(sqlite_uri)


def _check_decided(status: dict[str, Any], began_s: float) -> None:
    """What was said is done, with who said it and when; the second stage has the workers that it names."""
    assert status["phase"] == "training"
    assert (status["progress"]["num_workers"], status["workers"]["count"]) == (1, 1)
    assert status["progress"]["settings"]["lr_scale"] == 0.5
    first, second = status["progress"]["decisions"]
    assert (first["decision"], first["name"], first["value"]) == ("set", "lr_scale", 0.5)
    assert (second["decision"], second["reason"]) == ("next_stage", "flat")
    assert first["cursor"] <= second["cursor"] == status["progress"]["spans"][0]["stop"] < LONG * 132
    for entry in (first, second):
        assert entry["asked_by"] == operator()
        assert began_s < entry["time_s"] < time.time()
    assert status["recoveries"] == 0  # another group for another stage is no fault


def _check_looks(path: Path) -> None:
    """The watch saw both groups, and each of its lines is whole."""
    looks = [json.loads(line) for line in path.read_text().splitlines()]
    progress = [status["progress"] for (status,) in looks]
    assert {one["num_workers"] for one in progress} == {1, 2}
    cursors = [one["cursor"] for one in progress]
    assert cursors == sorted(cursors)
    assert len(set(cursors)) > 5


def _check_record(tracking_uri: str) -> None:
    """MLflow shows the decisions, and how many workers trained each stage."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("crescendo")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert "next stage: its length is reached" in record.data.tags["control"]
    table = json.loads(Path(client.download_artifacts(record.info.run_id, "control.json")).read_text())
    asked = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    told = [(row["stage"], row["decision"], row["asked by"], row["reason"]) for row in asked]
    assert told[:3] == [
        (1, "set lr_scale to 0.5", operator(), ""),
        (1, "next stage", operator(), "flat"),
        (2, "next stage", operator(), ""),
    ]
    assert all(row["time"] for row in asked)
    workers = client.get_metric_history(record.info.run_id, "stage/num_workers")
    first_stop, second_stop = (row["cursor"] for row in asked[1:3])
    assert {point.value for point in workers if point.step <= first_stop} == {2.0}
    assert {point.value for point in workers if point.step > first_stop} == {1.0}
    assert any(first_stop < point.step <= second_stop for point in workers)
    assert "1 worker" in record.data.tags["stage.2"]
    assert "worker" not in record.data.tags["stage.1"]  # it names none of its own

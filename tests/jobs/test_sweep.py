"""`jobs.sweep` as a user runs it: killed, and gone on with by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.storage import open_storage
from pipeline.sweep.ledger import Record, read_records
from tests.datasets.images import write_shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small shards in it."""
    folder = tmp_path_factory.mktemp("sweep")
    write_shards(folder / "train", [50, 64, 23])
    write_shards(folder / "val", [30])
    return folder


def command(place: Path, *more: str) -> list[str]:
    """The demo recipe, made small: one step in each of its four stages."""
    return [
        *(sys.executable, "-m", "jobs.sweep", "demo", "--name", "s", "--storage", str(place / "runs")),
        *("--data.train", str(place / "train"), "--data.val", str(place / "val")),
        *("--tracking.uri", f"sqlite:///{place}/mlflow.db", "--tracking.system-metrics", "False"),
        *("--cluster.num-workers", "1", "--max-trials", "3"),
        *(f"--stages.{index}.epochs=0.2" for index in range(4)),
        *(f"--stages.{index}.image-size={size}" for index, size in enumerate((32, 48, 48, 64))),
        *more,
    ]


def records(place: Path) -> list[Record]:
    return read_records(open_storage(str(place / "runs" / "s")))


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a driver and all that it started."""
    for member in [process, *psutil.Process(process.pid).children(recursive=True)]:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def test_a_dry_run_prints_the_tree_and_writes_nothing(place: Path) -> None:
    ended = subprocess.run(
        command(place, "--dry-run", "--storage", str(place / "dry")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "once for 3 trials" in ended.stdout
    assert "sharing saves" in ended.stdout
    assert not [path for path in (place / "dry").rglob("*") if path.is_file() and not path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_and_killed_sweep_goes_on_and_repeats_nothing_that_is_finished(place: Path) -> None:
    process = subprocess.Popen(command(place), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not any(record.stages for record in records(place)):
        assert process.poll() is None, "the sweep ended before it could be stopped"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 3, said
    assert "the same command goes on" in said

    killed = subprocess.Popen(command(place), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not any(record.state == "finished" for record in records(place)):
            assert killed.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.1)
    finally:
        if killed.poll() is None:
            kill_family(killed)
    done = [record for record in records(place) if record.state == "finished"]
    assert len(done) < 3
    kept = {path: path.stat().st_mtime_ns for path in _weights(place) if path.parts[-4] in {r.name for r in done}}
    starts = [path for path in _weights(place) if "-start-" in str(path)]

    ended = subprocess.run(command(place), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [record.state for record in records(place)] == ["finished"] * 3
    for record in done:
        assert record in records(place)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [path for path in _weights(place) if "-start-" in str(path)] == starts
    assert "python -m jobs.train demo --name s-best" in ended.stdout
    report = place / "runs" / "s" / "report"
    assert {path.name for path in report.iterdir()} >= {"report.md", "parallel-coordinates.png"}
    plan = json.loads((place / "runs" / "s" / "study.json").read_text())
    assert plan["search"] == "random"

    other = subprocess.run(
        command(place, "--seed", "1"), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert other.returncode == 2
    assert "seed: 0 -> 1" in other.stderr


def _weights(place: Path) -> list[Path]:
    return sorted((place / "runs").rglob("model.safetensors"))

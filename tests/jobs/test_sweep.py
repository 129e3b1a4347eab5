"""`jobs.sweep` as a user runs it: stopped, killed, and gone on with by the same command."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from infra.storage.open import open_storage
from jobs.common.cli import parse_recipe
from jobs.sweep import main
from pipeline.sweep.ledger import Record, StudyError, read_records
from tests.support.beside import done_once
from tests.support.killing import run_until
from tests.support.shards import write_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small shards in it."""
    folder = tmp_path_factory.mktemp("sweep")
    write_shards(folder / "train", [50, 64, 23])
    write_shards(folder / "val", [30])
    return folder


def arguments(place: Path, tracking_uri: str, *more: str) -> list[str]:
    """The demo recipe, made small: one step in each of its four stages; two trials, one after the other."""
    return [
        *("demo_scratch", "--name", "s", "--storage", str(place / "runs")),
        *("--data.train", str(place / "train"), "--data.val", str(place / "val")),
        *("--tracking.uri", tracking_uri, "--tracking.system-metrics", "False"),
        *("--cluster.num-workers", "1", "--cluster.standby", "False", "--max-trials", "2", "--concurrent", "1"),
        *(f"--stages.{index}.epochs=0.2" for index in range(4)),
        *(f"--stages.{index}.image-size={size}" for index, size in enumerate((32, 48, 48, 64))),
        *more,
    ]


def records(place: Path) -> list[Record]:
    return read_records(open_storage(str(place / "runs" / "s")))


def test_a_dry_run_prints_the_tree_and_writes_nothing(
    place: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, sqlite_uri, "--dry-run", "--storage", str(place / "dry"))) == 0
    said = capsys.readouterr().out
    assert "once for 2 trials" in said
    assert "sharing saves" in said
    assert not [path for path in (place / "dry").rglob("*") if path.is_file() and not path.name.startswith(".")]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_stopped_and_killed_sweep_goes_on_and_repeats_nothing_that_is_finished(
    place: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(place, sqlite_uri)
    # In its first stage already, when no trial has anything to report.
    with done_once(lambda: any((place / "runs").glob("s-*/config.json")), lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert main(command) == 3
    assert "run it again to resume" in capsys.readouterr().out

    # On a cluster of its own, which dies with it.
    run_until(
        [sys.executable, "-m", "jobs.sweep", *command],
        lambda: any(record.state == "finished" for record in records(place)),
    )
    (done,) = (record for record in records(place) if record.state == "finished")
    kept = {path: path.stat().st_mtime_ns for path in _weights(place) if path.parts[-4] == done.name}
    starts = [path for path in _weights(place) if "-start-" in str(path)]
    assert kept
    assert starts

    assert main(command) == 0
    assert [record.state for record in records(place)] == ["finished"] * 2
    assert done in records(place)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [path for path in _weights(place) if "-start-" in str(path)] == starts
    (best,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("python -m jobs.train demo_scratch ")
    )
    trained, _ = parse_recipe(shlex.split(best)[3:], prog="train")
    assert (trained.name, trained.data.train) == ("s-best", str(place / "train"))
    report = place / "runs" / "s" / "report"
    assert {path.name for path in report.iterdir()} >= {"report.md", "parallel-coordinates.png"}

    with pytest.raises(StudyError, match="seed: 0 -> 1"):
        main([*command, "--seed", "1", "--dry-run"])


def _weights(place: Path) -> list[Path]:
    return sorted((place / "runs").rglob("model.safetensors"))

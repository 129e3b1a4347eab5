"""What `jobs.train` does for a run that is trained to its end already: shows it, and sees to its record in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infra.storage.lease import LeaseError
from infra.storage.open import open_storage
from infra.tracking.tracker import Tracker
from jobs import train
from jobs.common.cli import parse_recipe
from pipeline.checkpoint.format import Snapshot, write_checkpoint
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.run.preflight import check_run
from pipeline.run.provenance import recorded_config
from tests.support.shards import write_shards

Follow = Callable[[Callable[[], Any]], None]
AWAY = "http://127.0.0.1:9"
NOTHING_TRAINED = SimpleNamespace(progress=None, phase="finished")


@pytest.fixture
def argv(tmp_path: Path, sqlite_uri: str) -> list[str]:
    for split in ("train", "val"):
        write_shards(tmp_path / split, [48])
    return [
        *("demo_scratch", "--name", "over", "--storage", str(tmp_path / "runs"), "--tracking.uri", sqlite_uri),
        *("--data.train", str(tmp_path / "train"), "--data.val", str(tmp_path / "val"), "--cluster.num-workers", "1"),
        *("--tracking.system-metrics", "False"),
    ]


@pytest.fixture
def config(argv: list[str]) -> TrainConfig:
    return parse_recipe(argv, prog="train")[0]


def finish(config: TrainConfig) -> None:
    """Write the checkpoint that a run of this config leaves at its end, with next to no weights."""
    ready = check_run(config)
    starts = [24 * index for index in range(len(config.stages) + 1)]
    snapshot = Snapshot(
        state=TrainState(cursor=starts[-1], stage_starts=starts, stage_results=[{} for _ in starts]),
        model={"weight": torch.zeros(1)},
        ema=None,
        optimizer={"state": {}, "param_groups": []},
        metadata=RunMetadata(
            config=recorded_config(ready.config), data=ready.data_fingerprint, val=ready.val.fingerprint, machine="m"
        ),
    )
    write_checkpoint(open_storage(config.folder), snapshot)


def record(config: TrainConfig, status: str = "") -> None:
    """Have MLflow know the run, and its end."""
    tracker = Tracker(config.tracking, config.name, storage=open_storage(config.folder))
    tracker.log_metrics({"train/loss": 0.5}, 1)
    assert tracker.close(status, 60) if status else tracker.flush(60)
    tracker.abandon()


@pytest.fixture
def follow_by(monkeypatch: pytest.MonkeyPatch) -> Follow:
    """Have something done in place of a run on a cluster."""
    return lambda follow: monkeypatch.setattr(train, "follow_to_end", lambda *_, **__: follow())


def test_a_finished_run_is_shown_and_nothing_is_started(
    argv: list[str], config: TrainConfig, follow_by: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    follow_by(lambda: pytest.fail("a run was started"))
    finish(config)
    record(config, "FINISHED")
    assert train.main(argv) == 0
    said = capsys.readouterr().out
    assert "over is finished; --extend EPOCHS" in said
    assert "its record in MLflow is complete" in said


def test_an_mlflow_that_gives_no_answer_is_no_complete_record(
    argv: list[str], config: TrainConfig, follow_by: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    follow_by(lambda: pytest.fail("a run was started"))
    finish(config)
    record(config)
    assert train.main([*argv, "--tracking.uri", AWAY]) == 1
    assert f"error: {AWAY} gives no answer: whether its record is complete is not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("FINISHED", 0, "its record in MLflow is complete"),
        ("", 1, "is incomplete: run the same command again"),
    ],
)
def test_a_record_that_was_left_open_is_completed_by_a_start(
    argv: list[str],
    config: TrainConfig,
    follow_by: Follow,
    capsys: pytest.CaptureFixture[str],
    status: str,
    code: int,
    said: str,
) -> None:
    def follow() -> Any:
        record(config, status)
        return NOTHING_TRAINED

    follow_by(follow)
    finish(config)
    record(config)
    assert train.main(argv) == code
    out = capsys.readouterr().out
    assert "its record in MLflow was left open: completing it" in out
    assert said in out.splitlines()[-1]


def test_a_run_whose_submission_is_yet_to_end_its_record_is_left_to_it(
    argv: list[str], config: TrainConfig, follow_by: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    def follow() -> Any:
        raise LeaseError("over is being trained by somebody")

    follow_by(follow)
    finish(config)
    record(config)
    assert train.main(argv) == 0
    assert "it is being completed: over is being trained by somebody" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [("FINISHED", 0), ("", 1)])
def test_a_run_that_another_submission_has_finished_meanwhile_is_shown(
    argv: list[str],
    config: TrainConfig,
    follow_by: Follow,
    capsys: pytest.CaptureFixture[str],
    status: str,
    code: int,
) -> None:
    def follow() -> Any:
        finish(config)
        record(config, status)
        return NOTHING_TRAINED

    follow_by(follow)
    assert train.main(argv) == code
    said = capsys.readouterr().out
    assert "over starts: " in said
    assert "over is finished" in said

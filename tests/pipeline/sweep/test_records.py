"""The records of a sweep's trials in MLflow, where processes were killed before these had their end."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.ended import end_record
from infra.tracking.mlflow_run import make_client
from infra.tracking.tracker import Tracker
from jobs.recipes.solar_cells import demo_scratch
from pipeline.run.preflight import Preflight, preflight
from pipeline.sweep import trial
from pipeline.sweep.config import SweepOptions, start_name
from pipeline.sweep.ledger import Ledger, Record
from pipeline.sweep.runner import StudyRunner
from pipeline.sweep.strategy import RandomStrategy
from pipeline.sweep.study import Study
from tests.support.configs import MakeConfig
from tests.support.runs import train_here


def test_a_trial_that_was_killed_before_its_record_had_its_end_is_started_again_for_it(
    make_config: MakeConfig, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05)
    config = make_config(name="sweep-000", tracking=tracking)
    train_here(preflight(config).config)
    storage = open_storage(f"{config.storage}/sweep-000")
    tracker = Tracker(tracking, "sweep-000", storage=storage)
    tracker.log_metrics({"val/accuracy": 0.5}, 1)
    assert tracker.flush(60)
    tracker.abandon()  # as by a process that is killed
    started: list[Preflight] = []

    def end_again(ready: Preflight, *_: object) -> SimpleNamespace:
        started.append(ready)
        assert end_record(tracking, "sweep-000", storage, "FINISHED")
        return SimpleNamespace(phase="finished")

    reports: list[dict[str, object]] = []
    monkeypatch.setattr(trial, "TuneReportCallback", object)
    monkeypatch.setattr(trial, "_started", end_again)
    monkeypatch.setattr(trial, "run_to_end", lambda controller: controller)
    monkeypatch.setattr(trial, "_wait_until_told", lambda callback: None)
    monkeypatch.setattr(trial.tune, "report", reports.append)
    values = {"config": config, "study": "sweep", "shared": frozenset[str](), "origin": dict[str, str]()}

    def train(num_stages: int) -> list[object]:
        reports.clear()
        trial.train_trial({"sealed": pickle.dumps(trial.TrialOrder(num_stages=num_stages, **values))})  # type: ignore[arg-type]
        return [report["stage"] for report in reports]

    assert train(1) == [1]  # no round but the last ends a record
    assert started == []
    assert train(2) == [1, 2]
    assert [ready.finished for ready in started] == [True]
    assert train(2) == [1, 2]
    assert len(started) == 1


def test_records_that_killed_processes_left_open_are_ended_with_the_study(tmp_path: Path, sqlite_uri: str) -> None:
    tracking = TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05)
    base = replace(demo_scratch(), name="sweep", storage=str(tmp_path), tracking=tracking)
    study = Study(
        kind="sweep",
        base=base,
        space={},
        strategy=RandomStrategy({}, seed=0),
        configure=lambda point: base,
        score=lambda metrics, figures: metrics["val/accuracy"],
        score_name="val/accuracy",
        shared=frozenset({"0123456789"}),
    )
    parent = Tracker(tracking, "sweep", storage=open_storage(tmp_path / "parent"))
    parent.set_tags({"kind": "sweep"})
    assert parent.flush(60)
    assert parent.run_id is not None
    states = {"sweep-000": "finished", "sweep-001": "stopped", "sweep-002": "open", "sweep-003": "finished"}
    ledger = Ledger(study.storage)
    ledger.records = [
        Record(number=number, name=name, point={}, state=state)  # type: ignore[arg-type]
        for number, (name, state) in enumerate(states.items())
    ]
    for name in (*states, start_name("sweep", "0123456789")):
        below = Tracker(replace(tracking, parent_run_id=parent.run_id), name, storage=open_storage(tmp_path / name))
        below.log_metrics({"loss": 0.5}, 1)
        assert below.close("FAILED", 60) if name == "sweep-003" else below.flush(60)
        below.abandon()  # as by one that is killed
    runner = StudyRunner(study, SweepOptions(), ledger, files=lambda records: {})
    runner._parent_run_id = parent.run_id
    runner._end_records()
    client = make_client(sqlite_uri)
    runs = client.search_runs([client.get_run(parent.run_id).info.experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {
        "sweep": "RUNNING",
        "sweep-000": "FINISHED",
        "sweep-001": "KILLED",
        "sweep-002": "RUNNING",  # the same command trains it further
        "sweep-003": "FAILED",  # it was ended already
        start_name("sweep", "0123456789"): "FINISHED",
    }
    parent.abandon()

"""A row is one point in MLflow, whoever sends it again: killed before the answer, or stopped and woken late."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.storage.base import Storage, StorageAwayError
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig, prepare
from infra.tracking.mlflow_run import MlflowRun, make_client
from infra.tracking.outbox import Row
from infra.tracking.row_log import LOG_FILE, OwnedObject, RowLog, Sent, TakenOverError
from infra.tracking.spool import SPOOL_FILE
from infra.tracking.tracker import Tracker

POINTS = (
    *("opens: read", "opens: write_if_absent", "writes down: write_if_match", "sends", "has sent"),
    *("writes down again: write_if_match", "checks: read", "tags", "ends"),
)
"""What the old process is about to do when it is stopped or killed."""
OCCURRENCES = {
    "opens: read": ("read", 1),
    "checks: read": ("read", 3),
    "writes down again: write_if_match": ("write_if_match", 2),
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "run")


def config_of(uri: str) -> TrackingConfig:
    return TrackingConfig(uri=uri, system_metrics=False, send_interval_s=0.05)


def end_before(point: str, how: signal.Signals, storage: Storage) -> None:
    """Have this process stopped or killed when it comes to a point."""
    what, occurrence = OCCURRENCES.get(point, (point.rpartition(": ")[2], 1))
    seen: Counter[str] = Counter()

    def reached(name: str) -> None:
        seen[name] += 1
        if name == what and seen[name] == occurrence:
            signal.pthread_kill(threading.get_ident(), how)

    def wrapped(name: str, call: Callable[..., object], after: str = "") -> Callable[..., object]:
        def function(*args: object) -> object:
            if name not in ("read", "write_if_absent", "write_if_match") or args[0] == LOG_FILE:
                reached(name)
            result = call(*args)
            reached(after)
            return result

        return function

    for name in ("read_with_etag", "write_if_absent", "write_if_match"):
        setattr(storage, name, wrapped(name.removesuffix("_with_etag"), getattr(storage, name)))
    MlflowRun.send_rows = wrapped("sends", MlflowRun.send_rows, "has sent")  # type: ignore[assignment]
    MlflowRun.send_tags = wrapped("tags", MlflowRun.send_tags)  # type: ignore[assignment]
    MlflowRun.finish = wrapped("ends", MlflowRun.finish)  # type: ignore[assignment]


def log_rows(tracker: Tracker, steps: range, speed: float) -> None:
    for step in steps:
        tracker.log_metrics({"train/loss": step / 7, "train/images_per_s": speed + step}, step)


def old_process(uri: str, storage: Storage, point: str, how: signal.Signals) -> None:
    """Record a run, up to a point. In a process of its own, which never returns."""
    try:
        end_before(point, how, storage)
        tracker = Tracker(config_of(uri), "fenced", storage=storage, epoch=1)
        log_rows(tracker, range(1, 11), speed=100.0)
        tracker.flush(60)
        log_rows(tracker, range(11, 21), speed=100.0)
        tracker.set_tags({"stage": "of the old process"})
        tracker.flush(60)
        log_rows(tracker, range(21, 31), speed=100.0)
        tracker.close("KILLED", 60)
    finally:
        os._exit(0)


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.soak, id="killed"), pytest.param(signal.SIGSTOP, id="stopped")],
)
@pytest.mark.parametrize("point", POINTS, ids=[f"{i}-{point}" for i, point in enumerate(POINTS)])
def test_each_row_is_one_point_after_a_process_ended_or_was_outdone_anywhere(
    sqlite_uri: str, storage: Storage, point: str, how: signal.Signals
) -> None:
    prepare(config_of(sqlite_uri))
    child = os.fork()
    if child == 0:  # by another spelling of the file: with connections of its own
        old_process(sqlite_uri.replace("mlflow.db", "./mlflow.db"), storage, point, how)
    status = os.waitpid(child, os.WUNTRACED)[1]
    assert os.WIFSTOPPED(status) if how is signal.SIGSTOP else os.WIFSIGNALED(status)
    new = Tracker(config_of(sqlite_uri), "fenced", storage=storage, epoch=2)
    log_rows(new, range(1, 41), speed=200.0)  # the measured values differ
    new.set_tags({"stage": "of the new process"})
    assert new.flush(60)
    if how is signal.SIGSTOP:
        os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)
    assert _run(sqlite_uri, new).info.status == "RUNNING" or point == "ends"
    log_rows(new, range(41, 51), speed=200.0)
    assert new.close("FINISHED", 60)
    for name in ("train/loss", "train/images_per_s"):
        history = make_client(sqlite_uri).get_metric_history(str(new.run_id), name)
        assert [metric.step for metric in history] == list(range(1, 51))
    run = _run(sqlite_uri, new)
    assert run.info.status == "FINISHED"
    assert run.data.tags["stage"] == "of the new process" or point == "tags"


def _run(uri: str, tracker: Tracker):  # type: ignore[no-untyped-def]
    return make_client(uri).get_run(str(tracker.run_id))


def test_a_process_of_an_earlier_epoch_that_comes_late_sends_nothing(sqlite_uri: str, storage: Storage) -> None:
    new = Tracker(config_of(sqlite_uri), "late", storage=storage, epoch=2)
    log_rows(new, range(1, 3), speed=200.0)
    assert new.flush(60)
    old = Tracker(config_of(sqlite_uri), "late", storage=storage, epoch=1)
    log_rows(old, range(1, 9), speed=100.0)
    assert not old.close("KILLED", 60)
    assert new.close("FINISHED", 60)
    history = make_client(sqlite_uri).get_metric_history(str(new.run_id), "train/images_per_s")
    assert [(metric.step, metric.value) for metric in history] == [(1, 201.0), (2, 202.0)]
    assert _run(sqlite_uri, new).info.status == "FINISHED"


@pytest.fixture(params=["local", "s3"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path if request.param == "local" else request.getfixturevalue("s3_uri"))


def test_the_log_belongs_to_the_last_that_opened_it_with_the_latest_epoch(any_storage: Storage) -> None:
    storage = any_storage
    first, second = RowLog(storage, 1), RowLog(storage, 2)
    row = Row(3, 1000, {"loss": float("nan"), "lr": 0.5})
    first.open()
    first.add("run", [row])
    sent = second.open()
    assert (sent.run_id, sent.last_steps, repr(sent.rows)) == ("run", {"loss": 3, "lr": 3}, repr([row]))
    for call in (first.check, lambda: first.add("run", []), RowLog(storage, 1).open):
        with pytest.raises(TakenOverError):
            call()
    second.add("run", [Row(4, 1001, {"lr": 0.25})])
    closing = RowLog(storage, None)  # as who closes a failed run's record
    assert closing.open().last_steps == {"loss": 3, "lr": 4}
    with pytest.raises(TakenOverError):
        second.check()
    closing.add("another run", [Row(1, 1002, {"lr": 0.25})])
    assert RowLog(storage, None).open().last_steps == {"lr": 1}


def test_a_damaged_log_is_said_and_made_anew(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    for content in (b"\x80\x04pickle", b'{"epoch": "\n{}', b'{"epoch": 1, "owner": ""}\n{"rows": 3}'):
        storage.write(LOG_FILE, content)
        assert RowLog(storage, 1).open() == Sent()
    assert caplog.text.count("is corrupt") == 3


def test_what_was_not_sent_is_kept_by_the_later_writer_alone(any_storage: Storage) -> None:
    storage = any_storage
    old, new = OwnedObject(storage, SPOOL_FILE, 1), OwnedObject(storage, SPOOL_FILE, 2)
    storage.write(SPOOL_FILE, b'{"step": 1}\n')  # of an earlier version
    assert old.read() == new.read() == b'{"step": 1}\n'
    assert old.replace(b"old")
    assert not new.replace(b"new")
    assert new.read() == b"old"
    assert new.replace(b"new")
    assert not old.replace(b"older")
    with pytest.raises(TakenOverError):
        old.read()


def test_a_write_whose_answer_was_lost_is_no_takeover(any_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = any_storage
    rows = RowLog(storage, 1)
    rows.open()
    with monkeypatch.context() as broken:
        write = storage.write_if_match

        def lose_the_answer(*args: object) -> None:
            write(*args)  # type: ignore[arg-type]
            raise StorageAwayError("no answer")

        broken.setattr(storage, "write_if_match", lose_the_answer)
        with pytest.raises(StorageAwayError):
            rows.add("run", [Row(1, 1, {"loss": 1.0})])
    rows.add("run", [Row(1, 1, {"loss": 1.0})])
    rows.check()
    RowLog(storage, 1).open()
    with pytest.raises(TakenOverError):
        rows.add("run", [Row(2, 2, {"loss": 1.0})])
    with pytest.raises(TakenOverError):
        rows.check()

"""The record in MLflow against a real server that hangs, dies and moves, and real processes that are killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.storage.base import Storage
from infra.storage.open import open_storage
from infra.tracking import mlflow_run
from infra.tracking import tracker as tracking
from infra.tracking.config import TrackingConfig, check, explained, prepare
from infra.tracking.ended import end_record, send_unsent
from infra.tracking.errors import TrackingAwayError, TrackingError
from infra.tracking.mlflow_run import log_below, make_client, open_run
from infra.tracking.outbox import Row
from infra.tracking.row_log import LOG_FILE
from infra.tracking.spool import SPOOL_FILE, spooled_status
from infra.tracking.tracker import Tracker
from tests.support.fault_proxy import Request, fault_proxy
from tests.support.forked import wait_until
from tests.support.servers import MlflowServer
from tests.support.training_process import value_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls to a server that hangs end after a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "MAX_PAUSE_S", 0.5)


@pytest.fixture
def config(mlflow_server: MlflowServer) -> TrackingConfig:
    return TrackingConfig(uri=mlflow_server.url, system_metrics=False, send_interval_s=0.05)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "run")


@pytest.fixture
def paused(mlflow_server: MlflowServer) -> Iterator[MlflowServer]:
    """The server hangs until the test lets it continue."""
    mlflow_server.pause()
    yield mlflow_server
    mlflow_server.proceed()


def history(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    assert run_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        return [(metric.step, metric.value) for metric in make_client(uri).get_metric_history(run_id, key)]


def run_of(uri: str, run_id: str | None) -> Any:
    assert run_id
    return make_client(uri).get_run(run_id)


def wait_for_run(tracker: Tracker) -> None:
    deadline = time.monotonic() + 60
    while tracker.run_id is None and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_run_is_recorded(config: TrackingConfig, storage: Storage, tmp_path: Path) -> None:
    tracker = Tracker(config, "recorded", storage=storage)
    tracker.log_params({f"p{i}": i for i in range(250)} | {"long": "x" * 10_000, "odd (name)": 1})
    tracker.set_tags({"stage": 1})
    tracker.set_description("# What this run is")
    tracker.log_metrics({"train/loss": 0.5, "val/class 0 (Überlänge)/../f1": float("nan")}, step=0)
    tracker.log_metrics({f"many/{i}": float(i) for i in range(1500)}, step=3)
    tracker.log_artifact_bytes("samples/stage-1.png", b"\x89PNG")
    tracker.log_artifact_bytes("report.md", b"fine")
    assert tracker.close("FINISHED", 60)
    run = run_of(config.uri, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "recorded"
    assert len(run.data.params) == 252
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["stage"] == "1"
    assert run.data.tags["mlflow.note.content"] == "# What this run is"
    assert run.data.metrics["train/loss"] == 0.5
    assert run.data.metrics["many/1499"] == 1499
    assert "val/f1" in run.data.metrics
    client = make_client(config.uri)
    for path, content in (
        ("samples/stage-1.png", b"\x89PNG"),
        ("report.md", b"fine"),
    ):
        assert Path(client.download_artifacts(run.info.run_id, path, str(tmp_path))).read_bytes() == content
    assert list(storage.list()) == ["tracking/run.json", LOG_FILE]


def test_rows_that_are_sent_again_are_not_doubled(config: TrackingConfig) -> None:
    prepare(config)
    experiment = make_client(config.uri).get_experiment_by_name(config.experiment).experiment_id
    run = open_run(config.uri, experiment, name="again", key="k" * 32, run_id=None)
    rows = [Row(step, 1000 + step, {"loss": value_of(step), "bad": float("nan")}) for step in range(700)]
    run.send_rows(rows)
    run.send_rows(rows[350:])
    run.send_rows([*rows[600:], Row(700, 1700, {"loss": value_of(700)})])
    assert history(config.uri, run.run_id, "loss") == [(step, value_of(step)) for step in range(701)]
    assert len(history(config.uri, run.run_id, "bad")) == 700
    assert run.sent_steps() == {"loss": 700, "bad": 699}
    again = open_run(config.uri, experiment, name="again", key="k" * 32, run_id=None)
    assert again.run_id == run.run_id


@pytest.mark.usefixtures("hasty")
def test_a_hanging_server_holds_up_nothing_and_doubles_nothing(
    config: TrackingConfig,
    storage: Storage,
    mlflow_server: MlflowServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING, "infra.tracking.tracker")
    tracker = Tracker(config, "hanging", storage=storage)
    tracker.log_metrics({"loss": value_of(0)}, 0)
    assert tracker.flush(60)
    slowest = 0.0
    for step in range(1, 451):
        if step in (50, 250):
            mlflow_server.pause()
        if step in (200, 400):
            mlflow_server.proceed()
        start = time.perf_counter()
        tracker.log_metrics({"loss": value_of(step)}, step)
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.01)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # a busy machine may take over a second for all of it
    assert tracker.close("FINISHED", 60)
    # Requests that timed out lie in the server's socket and are still served after it continues.
    assert history(config.uri, tracker.run_id, "loss") == [(step, value_of(step)) for step in range(451)]
    assert slowest < 0.5
    warnings = [record.getMessage() for record in caplog.records]
    assert sum("training continues" in text for text in warnings) == sum("is sent" in text for text in warnings) >= 1


@pytest.mark.soak
def test_a_server_killed_and_restarted_gets_each_metric_once(
    config: TrackingConfig, storage: Storage, mlflow_server: MlflowServer
) -> None:
    tracker = Tracker(config, "restarted", storage=storage)
    stop = threading.Event()
    logged: list[int] = []

    def train() -> None:
        while not stop.is_set():
            tracker.log_metrics({"train/loss": value_of(len(logged)), "train/lr": 0.1}, len(logged))
            logged.append(len(logged))
            time.sleep(0.005)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        wait_for_run(tracker)
        mlflow_server.kill()
        tracker.log_artifact_bytes("grid.png", b"png")
        assert not tracker.flush(1)
        assert "no answer" in tracker.problem
        mlflow_server.start()
    finally:
        stop.set()
        trainer.join()
    assert tracker.close("FINISHED", 60)
    assert [step for step, _ in history(config.uri, tracker.run_id, "train/loss")] == logged
    assert [step for step, _ in history(config.uri, tracker.run_id, "train/lr")] == logged
    assert run_of(config.uri, tracker.run_id).info.status == "FINISHED"


def test_a_server_that_moved_is_followed(config: TrackingConfig, storage: Storage, mlflow_server: MlflowServer) -> None:
    nobody = replace(config, uri="http://127.0.0.1:9")
    tracker = Tracker(nobody, "moved", storage=storage)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert not tracker.flush(0.5)
    tracker.set_uri(mlflow_server.url)
    tracker.log_metrics({"loss": 2.0}, 2)
    assert tracker.close("KILLED", 60)
    assert history(config.uri, tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert run_of(config.uri, tracker.run_id).info.status == "KILLED"


def test_artifacts_follow_a_server_that_moved(
    config: TrackingConfig, storage: Storage, mlflow_server: MlflowServer
) -> None:
    with fault_proxy(mlflow_server.url) as old:
        tracker = Tracker(replace(config, uri=old.url), "moved with artifacts", storage=storage)
        tracker.log_artifact_bytes("samples/stage-1.png", b"1")
        assert tracker.flush(60)
        old.fault = lambda request: "503"
        tracker.log_artifact_bytes("samples/stage-2.png", b"2")
        tracker.set_uri(mlflow_server.url)
        assert tracker.close("FINISHED", 60)
    names = [item.path for item in make_client(config.uri).list_artifacts(tracker.run_id or "", "samples")]
    assert names == ["samples/stage-1.png", "samples/stage-2.png"]


def test_a_run_that_is_submitted_again_with_another_address_sends_what_is_missing_once(
    config: TrackingConfig, storage: Storage, mlflow_server: MlflowServer
) -> None:
    first = Tracker(config, "resubmitted", storage=storage)
    first.log_metrics({"loss": 1.0}, 1)
    assert first.flush(60)
    first.set_uri("http://127.0.0.1:9")  # as if the server were gone
    first.log_metrics({"loss": 2.0}, 2)
    assert not first.close("KILLED", 0.5)
    elsewhere = replace(config, uri=config.uri.replace("127.0.0.1", "localhost"))
    second = Tracker(elsewhere, "resubmitted", storage=storage)
    for step in (1, 2, 3):  # it repeats steps
        second.log_metrics({"loss": float(step)}, step)
    assert second.close("FINISHED", 60)
    assert second.run_id == first.run_id
    assert history(config.uri, second.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def start_training(uri: str, folder: Path, stop: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.support.training_process",
        uri,
        str(folder / "run"),
        str(folder / "cursor"),
        str(stop),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if int(line) >= step:
            return


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.soak
def test_a_killed_training_process_loses_and_doubles_nothing(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    first = start_training(mlflow_server.url, tmp_path, 2600)
    read_until(first, 1210)
    kill(first)  # sent to MLflow: more than the checkpoint of step 1200 says
    second = start_training(mlflow_server.url, tmp_path, 2600)
    read_until(second, 1700)
    mlflow_server.pause()
    try:
        read_until(second, 1910)
        kill(second)  # a request of its own waits in the server's socket
        third = start_training(mlflow_server.url, tmp_path, 2600)
        read_until(third, 2210)
        kill(third)  # has never reached the server: all of it is in the spool
        last = start_training(mlflow_server.url, tmp_path, 2600)
        read_until(last, 2300)
    finally:
        mlflow_server.proceed()
    output, _ = last.communicate(timeout=120)
    assert output.splitlines()[-1] == "closed True"
    client = make_client(mlflow_server.url)
    experiment = client.get_experiment_by_name("crescendo").experiment_id
    runs = client.search_runs([experiment], "tags.`crescendo.run` = 'killed-run'")
    assert len(runs) == 1
    run_id = runs[0].info.run_id
    assert history(mlflow_server.url, run_id, "train/loss") == [(step, value_of(step)) for step in range(1, 2601)]
    assert history(mlflow_server.url, run_id, "val/accuracy") == [
        (step, value_of(step)) for step in range(10, 2601, 10)
    ]
    assert runs[0].data.params == {"lr": "0.1", "start": "0"}
    assert "changed.start" in runs[0].data.tags
    assert spooled_status(open_storage(tmp_path / "run")) is None


@pytest.mark.usefixtures("hasty")
def test_what_a_run_could_not_send_is_sent_later(
    config: TrackingConfig, storage: Storage, paused: MlflowServer
) -> None:
    tracker = Tracker(config, "late", storage=storage)
    tracker.log_metrics({"loss": 1.5}, 4)
    tracker.log_artifact_bytes("samples/a.png", b"png")
    tracker.set_tags({"stage": "2"})
    assert not tracker.close("FAILED", 1.5)
    assert not send_unsent(config, "late", storage, timeout=1.5)
    paused.proceed()
    assert send_unsent(config, "late", storage, timeout=60)
    assert send_unsent(config, "late", storage) is None
    client = make_client(config.uri)
    experiment = client.get_experiment_by_name(config.experiment).experiment_id
    (run,) = client.search_runs([experiment], "tags.`crescendo.run` = 'late'")
    assert run.info.status == "FAILED"
    assert run.data.tags["stage"] == "2"
    assert history(config.uri, run.info.run_id, "loss") == [(4, 1.5)]
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["samples"]
    assert spooled_status(storage) is None


def test_a_resumed_run_is_the_same_one_and_a_new_one_of_that_name_is_not(
    config: TrackingConfig, tmp_path: Path
) -> None:
    ids = []
    for folder in ("first", "first", "second"):
        below = replace(config, parent_run_id=ids[0] if ids else "")
        tracker = Tracker(below, "same-name", storage=open_storage(tmp_path / folder))
        tracker.log_metrics({"loss": 1.0}, 1)
        assert tracker.close("FINISHED", 60)
        ids.append(tracker.run_id)
    assert ids[0] == ids[1] != ids[2]
    assert run_of(config.uri, ids[2]).data.tags["mlflow.parentRunId"] == ids[0]
    assert [len(history(config.uri, run_id, "loss")) for run_id in ids] == [1, 1, 1]


def test_a_run_that_was_deleted_is_made_again(config: TrackingConfig, storage: Storage) -> None:
    tracker = Tracker(config, "deleted-run", storage=storage)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.flush(60)
    first = tracker.run_id
    make_client(config.uri).delete_run(first)
    tracker.log_metrics({"loss": 2.0}, 2)
    assert tracker.close("FINISHED", 60)
    assert tracker.run_id != first
    assert history(config.uri, tracker.run_id, "loss") == [(2, 2.0)]


def test_secrets_of_urls_reach_no_param_and_no_tag(sqlite_uri: str, storage: Storage) -> None:
    config = TrackingConfig(uri=sqlite_uri, system_metrics=False)
    tracker = Tracker(config, "secret", storage=storage)
    tracker.log_params({"tracking.uri": "postgresql://me:hunter2@db/mlflow"})
    tracker.set_tags({"at": "see http://me:hunter2@host/x"})
    assert tracker.close("FINISHED", 60)
    data = run_of(sqlite_uri, tracker.run_id).data
    assert data.params == {"tracking.uri": "postgresql://db/mlflow"}
    assert data.tags["at"] == "see http://host/x"


def test_artifacts_that_cannot_be_stored_hold_up_no_metrics(
    sqlite_uri: str,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is needed")
    database = TrackingConfig(
        uri=sqlite_uri, artifact_location=str(blocked), system_metrics=False, send_interval_s=0.05
    )
    prepare(database)
    tracker = Tracker(database, "blocked", storage=storage)
    tracker.log_artifact_bytes("a.txt", b"a")
    tracker.log_metrics({"loss": 1.0}, 1)
    wait_for_run(tracker)
    time.sleep(0.5)
    assert history(database.uri, tracker.run_id, "loss") == [(1, 1.0)]
    assert tracker.unsent == 1
    assert not tracker.close("FINISHED", 1)
    assert caplog.text.count("artifacts wait") == 1
    assert b"a.txt" in storage.read(SPOOL_FILE)
    blocked.unlink()
    monkeypatch.setattr("infra.tracking.delivery.PAUSE_S", 0.1)
    assert send_unsent(database, "blocked", storage)
    assert (tmp_path / "blocked").is_dir()


def test_runs_below_a_parent_get_final_metrics_once_and_stay_ended(sqlite_uri: str, tmp_path: Path) -> None:
    config = TrackingConfig(uri=sqlite_uri, system_metrics=False)
    parent = Tracker(config, "study", storage=open_storage(tmp_path / "study"))
    assert parent.flush(30)
    wait_for_run(parent)
    assert parent.run_id
    below = replace(config, parent_run_id=parent.run_id)
    child = Tracker(below, "study-000", storage=open_storage(tmp_path / "000"))
    child.log_metrics({"val/accuracy": 0.5}, step=7)
    assert child.close("KILLED")
    ended = run_of(sqlite_uri, child.run_id).info.end_time
    for value in (0.25, 0.125):
        metrics = {"study-000": {"reward": value, "val/accuracy": value}, "study-001": {"reward": value}}
        log_below(sqlite_uri, parent.run_id, metrics)
    parent.close()
    run = run_of(sqlite_uri, child.run_id)
    assert run.data.metrics == {"val/accuracy": 0.5, "reward": 0.25}
    assert (run.info.status, run.info.end_time) == ("KILLED", ended)
    assert history(sqlite_uri, child.run_id, "reward") == [(0, 0.25)]


def test_system_metrics_go_on_counting_after_a_resume(sqlite_uri: str, storage: Storage) -> None:
    pytest.importorskip("psutil")
    config = TrackingConfig(uri=sqlite_uri, send_interval_s=0.05, system_interval_s=0.1)
    prepare(config)
    for _ in range(2):
        tracker = Tracker(config, "loaded", storage=storage)
        wait_for_run(tracker)
        time.sleep(1.0)
        assert tracker.close("FINISHED", 60)
    key = "system/cpu_utilization_percentage"
    steps = [step for step, _ in history(config.uri, tracker.run_id, key)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 4


def test_the_load_of_several_nodes_has_mlflows_names_and_goes_on_counting(sqlite_uri: str, storage: Storage) -> None:
    config = TrackingConfig(uri=sqlite_uri, send_interval_s=0.05, system_metrics=False)
    prepare(config)
    for _ in range(2):
        tracker = Tracker(config, "nodes", storage=storage, node="0")
        wait_for_run(tracker)
        tracker.log_load("0", {"cpu_utilization_percentage": 1.0})
        for node in ("1", "10", "1"):
            tracker.log_load(node, {"cpu_utilization_percentage": float(node)})
        assert tracker.close("FINISHED", 60)
    counted = {"0": 2, "1": 4, "10": 2}
    for node, count in counted.items():
        points = history(config.uri, tracker.run_id, f"system/{node}/cpu_utilization_percentage")
        assert points == [(step, float(node or 0) or 1.0) for step in range(count)]


@pytest.mark.soak
def test_two_processes_may_make_the_same_new_sqlite_file(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from infra.storage.open import open_storage\n"
        "from infra.tracking.config import TrackingConfig, prepare\n"
        "from infra.tracking.tracker import Tracker\n"
        f"config = TrackingConfig(uri='sqlite:///{tmp_path}/runs/m.db', system_metrics=False)\n"
        "prepare(config)\n"
        f"tracker = Tracker(config, 'both', storage=open_storage(f'{tmp_path}/{{os.getpid()}}'))\n"
        "[tracker.log_metrics({'loss': 1.0}, step) for step in range(500)]\n"
        "print(tracker.close('FINISHED', 60), tracker.run_id)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in both]
    uri = f"sqlite:///{tmp_path}/runs/m.db"
    assert [done for done, _ in outputs] == ["True", "True"]
    assert outputs[0][1] != outputs[1][1]
    assert [len(history(uri, run_id, "loss")) for _, run_id in outputs] == [500, 500]
    assert run_of(uri, outputs[0][1]).info.artifact_uri.startswith(f"{tmp_path}/runs/artifacts/")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", "expected http"),
        ("file:///tmp/mlruns", "expected http"),
        ("sqlite://", "expected sqlite:///FILE"),
        ("sqlite:///:memory:", "expected sqlite:///FILE"),
        ("postgresql://user:hunter2@db", None),
        ("ftp://user:hunter2@db", "ftp://db"),
    ],
)
def test_a_wrong_uri_is_said_when_the_config_is_made(uri: str, message: str | None) -> None:
    if message is None:
        assert "hunter2" not in TrackingConfig(uri=uri).ui_command()
        return
    with pytest.raises(ValueError, match=message) as caught:
        TrackingConfig(uri=uri)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(TrackingAwayError, match=r"^tracking.uri is http://127.0.0.1:9: no answer; start") as caught:
        check(TrackingConfig(uri="http://me:hunter2@127.0.0.1:9"))
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_not_mlflow_is_said() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(TrackingError, match="what answers there is not an MLflow server") as caught:
            check(TrackingConfig(uri=f"http://127.0.0.1:{other.server_port}"))
        other.shutdown()
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, TrackingAwayError)


@pytest.mark.parametrize(
    ("uri", "text", "away"),
    [
        ("http://h", "API request to endpoint /x failed with error code 503 != 200", True),
        ("http://h", "API request to endpoint /x failed with error code 404 != 200", False),
        ("http://h", "API request to endpoint /x failed with error code 401 != 200", False),
        ("sqlite:///m.db", "(sqlite3.OperationalError) database is locked", True),
        ("sqlite:///m.db", "(sqlite3.OperationalError) no such table: runs", False),
        ("postgresql://h/m", "(psycopg2.OperationalError) connection refused", True),
        ("postgresql://h/m", "(psycopg2.OperationalError) server closed the connection unexpectedly", True),
        ("postgresql://h/m", "(psycopg2.OperationalError) FATAL: password authentication failed for user", False),
        ("postgresql://h/m", '(psycopg2.OperationalError) FATAL: database "m" does not exist', False),
        ("postgresql://h/m", "(psycopg2.errors.UndefinedTable) relation is not there", False),
        ("sqlite:///m.db", "(sqlite3.DatabaseError) file is not a database", False),
    ],
)
def test_what_may_be_over_the_next_time_is_told_from_what_is_to_be_cured(uri: str, text: str, away: bool) -> None:
    assert isinstance(explained(TrackingConfig(uri=uri), RuntimeError(text)), TrackingAwayError) == away


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionRefusedError("Connection refused"), True),
        (TimeoutError("Read timed out"), True),
        (OSError("Failed to resolve 'mlfow' ([Errno -2] Name or service not known)"), False),
        (OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), False),
        (TypeError("a fault of ours"), False),
    ],
)
def test_an_address_that_is_wrong_is_told_from_a_server_that_is_away(error: Exception, away: bool) -> None:
    assert isinstance(explained(TrackingConfig(uri="http://h"), error), TrackingAwayError) == away


def test_a_deleted_experiment_is_said(config: TrackingConfig) -> None:
    deleted = TrackingConfig(uri=config.uri, experiment="deleted")
    prepare(deleted)
    client = make_client(config.uri)
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with pytest.raises(TrackingError, match=r"tracking\.experiment 'deleted' was deleted in MLflow; restore it"):
        prepare(deleted)


def test_a_sqlite_file_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="can't be written"):
        check(TrackingConfig(uri=f"sqlite:///{tmp_path}"))
    with pytest.raises(TrackingError, match=r"cannot write /proc: no permission"):
        check(TrackingConfig(uri="sqlite:////proc/runs/m.db"))
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(TrackingError, match=r"the database can't be used: .*not a database"):
        prepare(TrackingConfig(uri=f"sqlite:///{tmp_path}/text.db"))
    check(TrackingConfig(uri=f"sqlite:///{tmp_path}/new/folder/m.db"))
    assert not (tmp_path / "new").exists()


def test_a_sqlite_file_of_another_machine_is_said(tmp_path: Path, storage: Storage) -> None:
    tracker = Tracker(TrackingConfig(uri=f"sqlite:///{tmp_path}/other/m.db"), "elsewhere", storage=storage)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert not tracker.flush(1.0)
    assert "a SQLite file serves one machine" in tracker.problem
    assert not tracker.close("FINISHED", 0.5)
    assert storage.exists(SPOOL_FILE)


def test_the_default_file_means_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig().absolute()
    monkeypatch.chdir("/")
    assert config.absolute().uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert (
        config.ui_command()
        == f".venv/bin/mlflow ui --workers 1 --backend-store-uri sqlite:///{tmp_path}/runs/mlflow.db"
    )


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = (
        "import sys, infra.tracking.tracker, infra.storage.open; sys.exit(bool({'mlflow', 'boto3'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ).returncode == 0


def test_a_run_that_is_anothers_now_is_left_alone(
    mlflow_server: MlflowServer, config: TrackingConfig, storage: Storage
) -> None:
    tracker = Tracker(replace(config, send_interval_s=60), "abandoned", storage=storage)
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert tracker.flush(60)
    tracker.log_metrics({"loss": 2.0}, step=2)
    tracker.abandon()
    tracker.persist()
    assert not tracker.close("KILLED")
    assert history(config.uri, tracker.run_id, "loss") == [(1, 1.0)]
    assert run_of(config.uri, tracker.run_id).info.status == "RUNNING"
    assert spooled_status(storage) is None


@pytest.mark.parametrize("code", ["INVALID_PARAMETER_VALUE", "BAD_REQUEST"])
def test_a_label_that_the_server_refuses_costs_no_other_and_is_named_once(
    sqlite_uri: str, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """An older server takes params of 500 characters, and refuses the whole batch for one that is longer."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    log_batch = MlflowClient.log_batch

    def as_older(self: Any, run_id: str, **values: Any) -> None:
        for label in [*values.get("params", ()), *values.get("tags", ())]:
            if len(label.value) > 500:
                raise MlflowException(
                    f"{label.key} had length {len(label.value)}", databricks_pb2.ErrorCode.Value(code)
                )
        log_batch(self, run_id, **values)

    monkeypatch.setattr(MlflowClient, "log_batch", as_older)
    params = {f"param.{number}": "x" for number in range(150)} | {"param.77b": "x" * 600}
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05), "x", storage=storage)
    tracker.log_params(params)
    tracker.set_tags({"short": "x", "long": "x" * 600})
    assert tracker.flush(60)
    tracker.set_tags({"short": "y", "long": "y" * 600})
    assert tracker.close("FINISHED", 60)
    data = run_of(sqlite_uri, tracker.run_id).data
    assert data.params == {name: value for name, value in params.items() if len(value) < 500}
    assert data.tags["short"] == "y"
    refusals = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert [("param.77b" in line, "long" in line) for line in refusals] == [(True, False), (False, True)]


def test_tables_of_an_earlier_process_stay_tables(sqlite_uri: str, storage: Storage) -> None:
    """MLflow's page knows them by one tag, which the next process writes again."""
    config = TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05)
    for epoch, path in enumerate(("control.json", "checkpoints.json", "classes.json"), start=1):
        tracker = Tracker(config, "tables", storage=storage, epoch=epoch)
        tracker.log_table(path, "{}")
        assert tracker.close("KILLED", 60)
    tables = json.loads(run_of(sqlite_uri, tracker.run_id).data.tags[mlflow_run.TABLES_TAG])
    assert sorted(table["path"] for table in tables) == ["checkpoints.json", "classes.json", "control.json"]


def test_a_param_that_is_as_at_first_again_is_on_record_as_that(sqlite_uri: str, storage: Storage) -> None:
    config = TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05)
    for epoch, workers in enumerate((1, 2, 1), start=1):
        tracker = Tracker(config, "params", storage=storage, epoch=epoch)
        tracker.log_params({"workers": workers})
        assert tracker.close("KILLED", 60)
    data = run_of(sqlite_uri, tracker.run_id).data
    assert (data.params["workers"], data.tags["changed.workers"]) == ("1", "1")


def test_what_mlflow_had_in_the_end_is_not_overwritten_by_what_once_waited(
    sqlite_uri: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow was away at a checkpoint, came back and got newer values; then the process was killed."""
    config = TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05)
    first = Tracker(config, "spooled", storage=storage, epoch=1)
    first.set_tags({"checkpoint": "24"})
    assert first.flush(60)
    with monkeypatch.context() as away:
        away.setattr(mlflow_run.MlflowRun, "send_tags", fails)
        first.set_tags({"checkpoint": "48"})
        first.log_artifact_bytes("notes.txt", b"of 48")
        first.persist(0.2)
    assert spooled_status(storage) == "KILLED"
    assert first.flush(60)
    first.set_tags({"checkpoint": "72"})
    assert first.flush(60)
    first.abandon()  # nothing is written at its end, as by one that is killed
    assert end_record(config, "spooled", storage, "FAILED")
    assert run_of(sqlite_uri, first.run_id).data.tags["checkpoint"] == "72"


def fails(*_: object) -> dict[str, str]:
    raise ConnectionError("MLflow is away")


@pytest.mark.usefixtures("hasty")
def test_a_run_that_a_slow_server_makes_late_is_not_made_again(
    config: TrackingConfig, storage: Storage, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped for seconds: it first answers others, then works off what it was asked for."""
    prepare(config)
    client = make_client(config.uri)
    experiment = client.get_experiment_by_name(config.experiment).experiment_id

    def runs() -> list[Any]:
        return list(client.search_runs([experiment], f"tags.`{mlflow_run.NAME_TAG}` = 'late run'"))

    with fault_proxy(mlflow_server.url) as proxy:

        def fault(request: Request) -> str:
            created = sum(one.path.endswith("/runs/create") for one in proxy.requests)
            return "stuck" if request.path.endswith("/runs/create") and created == 1 else ""

        def settle(_: float) -> None:
            proxy.released.set()
            wait_until(runs)

        proxy.fault = fault
        monkeypatch.setattr(
            tracking, "time", SimpleNamespace(sleep=settle, monotonic=time.monotonic, time_ns=time.time_ns)
        )
        tracker = Tracker(replace(config, uri=proxy.url), "late run", storage=storage)
        tracker.log_metrics({"loss": 0.5}, 1)
        assert tracker.close("FINISHED", 60)
    assert [(run.info.run_id, run.info.status) for run in runs()] == [(tracker.run_id, "FINISHED")]

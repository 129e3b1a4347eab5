"""Checkpoints while storage has faults: training continues; what can't be cured ends the run with one clear line."""

from __future__ import annotations

import datetime
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.auth
import pytest

from infra.storage.base import Storage
from infra.storage.local import LocalStorage
from infra.storage.s3 import S3Storage
from pipeline.checkpoint import async_writer as saver_module
from pipeline.checkpoint.async_writer import Saver
from pipeline.checkpoint.format import latest_valid
from pipeline.training_config import CheckpointConfig
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.recorders import Events
from tests.support.servers import S3Server
from tests.support.snapshots import snapshot


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "RETRY_S", 0.05)


@pytest.fixture
def proxy(s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.url) as started:
        monkeypatch.setenv("AWS_ENDPOINT_URL", started.url)
        yield started


def s3(uri: str, patience_s: float = 0.3) -> S3Storage:
    return S3Storage(*uri.removeprefix("s3://").split("/"), patience_s=patience_s)


def waits_and_is_saved(storage: Storage, line: str, cure: Callable[[], object]) -> None:
    """While the fault lasts the run hears of it; once it is cured the newest checkpoint is written."""
    events = Events()
    saver = Saver(storage, CheckpointConfig(), events)
    saver.take(snapshot(24))
    deadline = time.monotonic() + 30
    while not events.lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    saver.take(snapshot(48))
    assert events.saved_at == []
    assert "training continues" in events.lines[0]
    assert line in events.lines[0]
    assert "\n" not in events.lines[0]
    cure()
    assert saver.wait(30)
    assert events.saved_at[-1] == 48
    found, skipped = latest_valid(storage)
    assert found is not None
    assert (found.state.cursor, skipped, events.ended) == (48, [], "")


def test_a_disk_that_is_full(disk: Path) -> None:
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))
    waits_and_is_saved(LocalStorage(disk / "run"), "the disk is full; free some space", ballast.unlink)


def test_a_disk_that_becomes_read_only(disk: Path) -> None:
    def mount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)

    mount("ro")
    waits_and_is_saved(LocalStorage(disk / "run"), "the filesystem is read-only", lambda: mount("rw"))


def test_answers_of_503_and_slow_ones_cost_only_time(s3_uri: str, proxy: FaultProxy) -> None:
    proxy.fault = lambda request: "503" if request.number % 3 == 0 else "slow" if request.number % 3 == 1 else ""
    events = Events()
    saver = Saver(s3(s3_uri, patience_s=30), CheckpointConfig(), events)
    saver.take(snapshot(24))
    assert saver.wait(60)
    assert (events.saved_at, events.lines) == ([24], [])
    assert len([request for request in proxy.requests if request.method == "PUT"]) > 5


@pytest.mark.parametrize(("fault", "line"), [("503", "the server answers SlowDown"), ("403", "access is denied")])
def test_a_server_that_takes_nothing_for_a_while(s3_uri: str, proxy: FaultProxy, fault: str, line: str) -> None:
    proxy.fault = lambda request: fault if request.method == "PUT" else ""

    def cure() -> None:
        proxy.fault = lambda request: ""

    waits_and_is_saved(s3(s3_uri), line, cure)


def _wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")


def _wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    an_hour_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: an_hour_ago.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("make_fault", "line"), [(_wrong_key, "the server refuses the secret key"), (_wrong_clock, "set the clock (NTP)")]
)
def test_what_is_not_cured_ends_the_run_with_one_line(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, make_fault: Callable[[pytest.MonkeyPatch], None], line: str
) -> None:
    make_fault(monkeypatch)
    events = Events()
    saver = Saver(s3(s3_uri), CheckpointConfig(give_up_s=3.0), events)  # a first call makes the client, too
    saver.take(snapshot(24))
    assert saver.wait(30)
    assert events.ended.startswith("no checkpoint could be written for")
    assert line in events.ended
    assert "\n" not in events.ended
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in events.ended
    assert events.saved_at == []

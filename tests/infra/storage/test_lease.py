from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.storage import lease as lease_module
from infra.storage.base import Data, Storage
from infra.storage.lease import KEY, Lease, LeaseError, check_conditional_writes, is_held
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path if request.param == "local" else request.getfixturevalue("s3_uri"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM_S", 2.0), ("RENEW_S", 0.3), ("LOOK_S", 0.05)):
        monkeypatch.setattr(lease_module, name, value)


def refused(storage: Storage) -> str:
    with pytest.raises(LeaseError) as error:
        Lease(storage).take()
    return str(error.value)


def test_of_many_at_once_one_gets_it_and_the_others_are_refused(storage: Storage) -> None:
    got: list[Lease] = []
    lines: list[str] = []

    def submit() -> None:
        lease = Lease(storage)
        try:
            lease.take()
        except LeaseError as error:
            lines.append(str(error))
            return
        lease.keep(lines.append)
        got.append(lease)

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert is_held(storage)
    assert len(lines) == 5
    assert all("is being trained by" in line and "--name" in line for line in lines)
    got[0].release()
    Lease(storage).take()


def test_the_controller_goes_on_with_the_drivers_lease(storage: Storage) -> None:
    driver = Lease(storage)
    driver.take()
    driver.keep(lambda _: None)
    controller: Lease = pickle.loads(pickle.dumps(driver))
    lost: list[str] = []
    controller.keep(lost.append)
    time.sleep(1)  # both renew
    driver.rest()
    refused(storage)
    assert lost == []
    controller.release()
    assert not is_held(storage)


def test_who_writes_notices_a_takeover_that_it_has_not_heard_of(storage: Storage) -> None:
    mine = Lease(storage)
    mine.take()
    worker = Lease(storage, token=mine.token)
    worker.check()
    storage.write(KEY, Lease(storage)._record())
    with pytest.raises(LeaseError, match="was taken over by another submission"):
        worker.check()
    storage.delete(KEY)
    with pytest.raises(LeaseError, match="was released or deleted"):
        worker.check()


class ReleasedLate(LocalStorage):
    """Hands the lease to another submission just before it is written."""

    def write_if_match(self, key: str, data: Data, etag: str) -> str | None:
        super().write(KEY, Lease(self)._record())
        return super().write_if_match(key, data, etag)


def test_who_gives_back_what_has_become_anothers_changes_nothing(tmp_path: Path) -> None:
    storage = ReleasedLate(tmp_path)
    mine = Lease(storage)
    mine.take()
    mine.release()
    assert is_held(storage)


def test_one_that_nobody_renews_expires(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    first = Lease(storage)
    first.take()
    began = time.monotonic()
    second = Lease(storage)
    second.take()
    assert 1.9 < time.monotonic() - began < 20
    first.keep(lost.append)
    time.sleep(1)
    assert len(lost) == 1
    assert "taken over by another submission" in lost[0]
    first.release()  # it is not the first one's to give back
    assert storage.exists(KEY)


def test_a_killed_holder_of_this_machine_holds_up_nobody(tmp_path: Path) -> None:
    code = (
        "import time; from infra.storage.open import open_storage; from infra.storage.lease import Lease\n"
        f"lease = Lease(open_storage({str(tmp_path)!r})); lease.take(); lease.keep(print); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert "process" in _refused_slowly(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    lease_module.TERM_S = 60.0
    Lease(open_storage(tmp_path)).take()
    assert time.monotonic() - began < 5


def test_a_live_holder_is_not_taken_for_dead_after_a_clock_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What psutil tells of a process's start moves with the clock; this one is asked of the kernel in ticks."""
    storage = open_storage(tmp_path)
    Lease(storage).take()
    holder = json.loads(storage.read(KEY))
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: time.time())
    assert not lease_module._is_gone(holder)
    assert lease_module._is_gone(holder | {"start_ticks": holder["start_ticks"] - 1})  # the number is another's by now
    assert lease_module._is_gone(holder | {"pid": 2**22 + 1})


def _refused_slowly(folder: Path) -> str:
    lease_module.TERM_S = 30.0  # the holder renews at the module's own pace
    return refused(open_storage(folder))


class Careless(LocalStorage):
    """A dialect that takes conditional writes as plain ones."""

    def write_if_absent(self, key: str, data: Data) -> bool:
        self.write(key, data)
        return True

    def write_if_match(self, key: str, data: Data, etag: str) -> str | None:
        self.write(key, data)
        return "tag"


def test_storage_that_ignores_conditions_is_noticed(storage: Storage, tmp_path: Path) -> None:
    assert check_conditional_writes(storage)
    careless = Careless(tmp_path / "careless")
    assert not check_conditional_writes(careless)
    first = Lease(careless)
    first.take()
    first.keep(lambda _: None)
    refused(careless)  # but for a true race, it works there too
    first.release()

"""A rank that hangs, without a cluster: when it is found to, what it leaves, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from datasets.cache.download import PART, is_downloading
from datasets.files.s3 import PATIENCE_S
from infra.cluster.config import ClusterConfig
from pipeline.run import controller_client
from pipeline.run.watchdog import END_S, Watchdog
from pipeline.run.worker_group import group_timeout_s
from tests.support.killing import ROOT

DEFAULT_S = ClusterConfig().step_timeout_s


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


def test_a_rank_is_overdue_when_its_last_heartbeat_is_too_long_ago() -> None:
    clock = Clock()
    watchdog = Watchdog(1200, lambda: None, clock=clock)
    for pause_s in (1199, 1200, 0.1, 1200):  # a long run of slow steps
        clock.now_s += pause_s
        assert not watchdog.is_overdue
        watchdog.heartbeat()
    clock.now_s += 1200.5
    assert watchdog.is_overdue
    watchdog.heartbeat()
    assert not watchdog.is_overdue


def test_without_a_limit_no_rank_is_overdue() -> None:
    clock = Clock()
    with Watchdog(0, lambda: pytest.fail("it was ended"), clock=clock) as watchdog:
        clock.now_s += 1e9
        assert not watchdog.is_overdue


def test_what_hangs_is_ended_once_and_nothing_is_after_the_end() -> None:
    ended: list[bool] = []
    with Watchdog(0.2, lambda: ended.append(True)) as watchdog:
        while not ended:
            watchdog._closed.wait(0.05)
        watchdog._closed.wait(1.0)
    assert ended == [True]
    with Watchdog(0.2, lambda: ended.append(True)) as watchdog:
        watchdog.heartbeat()
    watchdog._closed.clear()
    watchdog._closed.wait(1.0)
    assert ended == [True]


def test_who_waits_for_a_download_that_grows_is_not_ended(tmp_path: Path) -> None:
    part = tmp_path / f"shard{PART}"
    part.touch()
    ended = threading.Event()
    with Watchdog(0.2, ended.set, elsewhere=lambda: is_downloading(tmp_path)):
        assert not ended.wait(1.0)
        os.utime(part, (0, 0))  # nothing was written for long
        assert ended.wait(60)


def test_a_timer_is_not_set_after_the_end() -> None:
    with Watchdog(0.2, lambda: None, spare_s=0.3) as watchdog:
        pass
    watchdog._set_timer()
    time.sleep(1.0)  # else this process would have ended


def test_a_limit_that_is_none_is_refused() -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"cluster\.step_timeout_s is .*: it must be 0 \(off\) or more"):
            ClusterConfig(step_timeout_s=wrong)


def test_a_rank_ends_later_than_what_it_waits_for_and_sooner_than_those_that_wait_for_it() -> None:
    """Each limit within the next one, so that the innermost, which knows most, is what the user reads."""
    assert PATIENCE_S < DEFAULT_S
    assert controller_client.PATIENCE_S < DEFAULT_S
    for step_timeout_s in (DEFAULT_S, 10.0, 7200.0):
        assert step_timeout_s + END_S < group_timeout_s(step_timeout_s)
    assert group_timeout_s(0) > PATIENCE_S


RANK = """
import ctypes, os, sys, threading, time
from functools import partial
from infra.storage.open import open_storage
from pipeline.run import watchdog
from pipeline.run.stacks import Stacks

watchdog.OTHERS_S = watchdog.TELL_TIMEOUT_S = 0.5
storage, lines = open_storage(sys.argv[1]), []

def tell(line):
    print(line, flush=True)

def hang_in_the_rank():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def hang_with_pythons_lock():
    ctypes.PyDLL(None).sleep(600)

stuck = partial(watchdog.end_stuck_rank, storage, 3, 1.0, Stacks(), tell)
with watchdog.Watchdog(1.0, stuck, spare_s=float(sys.argv[2])):
    {body}
"""
HANGING_LOADER = """
    lock = threading.Lock()
    lock.acquire()  # as another thread may hold it in the moment of the fork
    def loader_reads_a_sample():
        lock.acquire()
    if (pid := os.fork()) == 0:
        loader_reads_a_sample()
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""


def rank(tmp_path: Path, body: str, *, storage: Path | None = None, spare_s: float = 60) -> tuple[str, str]:
    """Run a rank that hangs to its end; return its output and its log."""
    code = RANK.format(body=textwrap.dedent(body).strip().replace("\n", "\n    "))
    command = [sys.executable, "-c", code, str(storage or tmp_path), str(spare_s)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    return ended.stdout, ended.stderr


def assert_gone(*pids: int) -> None:
    """Processes end, or are left for the machine's first process to be buried."""
    deadline = time.monotonic() + 60
    for pid in pids:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{pid} is there"
            time.sleep(0.05)


def test_the_stacks_of_a_rank_that_hangs_are_in_storage_and_in_the_log(tmp_path: Path) -> None:
    said, log = rank(tmp_path, "hang_in_the_rank()")
    (path,) = (tmp_path / "stacks").iterdir()
    assert said == (
        "rank 3 made no progress for 1 s (cluster.step_timeout_s): a new worker group resumes; "
        f"its stacks are in {path}\n"
    )
    for text in (path.read_text(), log):
        assert "in hang_in_the_rank" in text
        assert "is MainThread" in text


def test_the_stacks_of_a_loader_that_waits_for_a_lock_of_before_the_fork_are_there_and_it_is_ended(
    tmp_path: Path,
) -> None:
    said, _ = rank(tmp_path, HANGING_LOADER)
    pid, _ = said.splitlines()
    (path,) = (tmp_path / "stacks").iterdir()
    of_rank, _, of_loader = path.read_text().partition(f"process {pid}, forked by it")
    assert "in loader_reads_a_sample" in of_loader
    assert "in loader_reads_a_sample" not in of_rank
    assert_gone(int(pid))


def test_a_loader_that_is_stopped_is_named_and_ended_and_another_program_is_left_alone(
    tmp_path: Path,
) -> None:
    body = """
    import signal, subprocess
    program = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if (pid := os.fork()) == 0:
        time.sleep(600)
    os.kill(pid, signal.SIGSTOP)
    print(pid, program.pid, flush=True)
    time.sleep(600)
    """
    said, _ = rank(tmp_path, body)
    pid, program = said.splitlines()[0].split()
    text = next((tmp_path / "stacks").iterdir()).read_text()
    assert f"process {pid}, forked by it, stopped: python" in text
    assert "it does not answer" in text.partition(f"process {pid},")[2]
    assert_gone(int(pid))
    other = psutil.Process(int(program))
    assert other.name() == "sleep"
    other.kill()


def test_a_rank_ends_also_where_storage_hangs_or_refuses(tmp_path: Path) -> None:
    full = tmp_path / "file"
    full.write_text("")
    said, log = rank(tmp_path, "hang_in_the_rank()", storage=full)
    assert "its stacks are in its log" in said
    assert "in hang_in_the_rank" in log
    said, log = rank(tmp_path, "storage.write = lambda *_: time.sleep(600); hang_in_the_rank()")
    assert "its stacks are in its log" in said
    assert "not done within 0.5 s" in log


def test_a_call_that_hangs_with_pythons_lock_leaves_its_stack_in_the_log(tmp_path: Path) -> None:
    said, log = rank(tmp_path, "time.sleep(0.6); hang_with_pythons_lock()", spare_s=1)
    assert said == ""
    assert "in hang_with_pythons_lock" in log

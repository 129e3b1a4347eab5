"""Functions in forked processes, which stop themselves where a race would be."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

FORK = multiprocessing.get_context("fork")


def in_process(function: Callable[[], object], *, user: int | None = None) -> multiprocessing.process.BaseProcess:
    """Run a function in a forked process; its exit code is 0 if it returned."""

    def run() -> None:
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        function()

    process = FORK.Process(target=run)
    process.start()
    return process


def ends_well(process: multiprocessing.process.BaseProcess, seconds: float = 120) -> bool:
    """Wait for a process; say whether its function returned."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    return process.exitcode == 0


def stop_here() -> None:
    """Stop this process until `go_on`."""
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_stopped(process: multiprocessing.process.BaseProcess) -> None:
    """Wait until a process has stopped itself."""
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def go_on(process: multiprocessing.process.BaseProcess) -> None:
    """Let a stopped process go on."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)

"""The end that no process can prepare for, and what else happens beside a run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def run_until(command: Sequence[str], reached: Callable[[], bool], pause_s: float = 0.1) -> None:
    """Start a command; once something is reached, SIGKILL it and all that it started."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not reached():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(pause_s)
    finally:
        if process.poll() is None:
            kill_family(process)


def kill_family(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """SIGKILL a driver and all that it started."""
    for member in [process, *psutil.Process(process.pid).children(recursive=True)]:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@contextmanager
def done_once(condition: Callable[[], object], action: Callable[[], object]) -> Iterator[None]:
    """Beside the body: do something as soon as something is so, in another thread; not any more at the body's end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if condition():
                action()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""The Python stacks of a rank and of its loader processes, for whoever asks what it hangs in."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

SIGNAL = signal.SIGUSR1
ANSWER_S = 2.0
"""For how long one process may take to write its stacks."""


class Stacks:
    """Takes stacks of this process and of those that it forks from now on, such as its loader processes.

    A fork inherits the signal's handler and the open file: it answers in whatever it hangs, a lock that was held while
    it was forked included. Only a process that is stopped, or waits for a disk in the kernel, does not.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the process is
        faulthandler.register(SIGNAL, file=self._file, all_threads=True)

    def take(self) -> bytes:
        """Return the stacks of all threads of this process and of its forks."""
        start = self._size()
        self._write(f"process {os.getpid()}, this rank")
        for thread in threading.enumerate():
            self._write(f"thread {thread.ident or 0:#018x} is {thread.name}")
        faulthandler.dump_traceback(self._file, all_threads=True)
        for process in forks():
            with suppress(psutil.Error, OSError):  # it has ended
                self._ask(process)
        return os.pread(self._file.fileno(), self._size() - start, start)

    def _ask(self, process: psutil.Process) -> None:
        self._write(f"\nprocess {process.pid}, forked by it, {process.status()}: {process.name()}")
        before = last = self._size()
        process.send_signal(SIGNAL)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            size = self._size()
            if before < size == last:
                return
            last = size
        self._write("it does not answer")

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n".encode())

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size


def forks() -> list[psutil.Process]:
    """Return the processes that this one has forked; not other programs, which would end by the signal.

    Such as Python's resource tracker, which removes what a process that was killed has left, and must outlive it.
    """
    return [process for process in psutil.Process().children(recursive=True) if _takes_signal(process.pid)]


def _takes_signal(pid: int) -> bool:
    """Say whether a process has a handler of `SIGNAL`."""
    with suppress(OSError):  # it has ended
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (SIGNAL - 1) & 1)
    return False

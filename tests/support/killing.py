"""The end that no process can prepare for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
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

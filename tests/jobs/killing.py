"""The end that no process can prepare for."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a driver and all that it started."""
    for member in [process, *psutil.Process(process.pid).children(recursive=True)]:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def test_a_server_ends_with_a_session_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from tests.support.servers import Watched\n"
        "class Sleeper(Watched):\n"
        "    command = lambda self: ['sh', '-c', 'sleep 100 & sleep 100']\n"
        "    is_ready = lambda self: True\n"
        f"server = Sleeper(Path({str(tmp_path)!r})); server.start(); print(server._process.pid, flush=True)\n"
        "time.sleep(100)"
    )
    session = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert session.stdout is not None
    server = psutil.Process(int(session.stdout.readline()))
    family = [server, *server.children()]
    os.kill(session.pid, signal.SIGKILL)
    session.wait()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert len(gone) >= 1

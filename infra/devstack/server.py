"""A server process on loopback, in a process group of its own, and free ports for it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


class ServerError(ValueError):
    """A server did not start."""


class Server:
    """A server process: start, stop, kill, and start again at the same address with the same data.

    Its folder holds its log and its process id, by which another process can find and stop it.
    """

    stop_grace_s = 3.0
    """How long it may take to end after SIGTERM."""
    start_timeout_s = 120.0
    """How long it may take until it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: psutil.Process | None = None

    def command(self) -> list[str]:
        """Return the program and its arguments; no secrets, which any user of the machine could read there."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return additions to this process's environment."""
        return {}

    def is_ready(self) -> bool:
        """Say whether it answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            ServerError: it ended, or was not ready in time; with the end of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | self.environment()
        with (self.folder / "server.log").open("ab") as log:
            self._process = psutil.Popen(
                self.command(),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / "pid").write_text(f"{self._process.pid} {self._process.create_time()}")
        deadline = time.monotonic() + self.start_timeout_s
        while not self.is_ready():
            if self.process() is None or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "server.log").read_text(errors="replace")[-3000:]
                raise ServerError(f"{type(self).__name__} did not start; the end of {self.folder}/server.log:\n{tail}")
            time.sleep(0.1)

    def process(self) -> psutil.Process | None:
        """Return its process if it runs, also when another process started it."""
        try:
            if self._process is None:
                pid, created = (self.folder / "pid").read_text().split()
                found = psutil.Process(int(pid))
                self._process = found if abs(found.create_time() - float(created)) < 1 else None
            if self._process is not None and self._process.status() != psutil.STATUS_ZOMBIE:
                return self._process
        except (OSError, ValueError, psutil.NoSuchProcess):
            pass
        return None

    def stop(self) -> None:
        """End it by SIGTERM, and by SIGKILL when that takes too long."""
        if (process := self.process()) is not None:
            family = self._family(process)
            self._signal(signal.SIGTERM)
            psutil.wait_procs(family, timeout=self.stop_grace_s)
            self._end(family)

    def kill(self) -> None:
        """End it, with what it started, by SIGKILL."""
        if (process := self.process() or self._process) is not None:
            self._end(self._family(process))

    def _end(self, family: list[psutil.Process]) -> None:
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=30)
        (self.folder / "pid").unlink(missing_ok=True)
        self._process = None

    @staticmethod
    def _family(process: psutil.Process) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [process, *process.children(recursive=True)]
        return [process]

    def pause(self) -> None:
        """Make it hang: connections are accepted by the kernel and never answered."""
        self._signal(signal.SIGSTOP)

    def proceed(self) -> None:
        """Let a paused one continue."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def answers(url: str, token: str = "") -> bool:
    """Say whether a GET of `url` gives 200 within two seconds."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int, also_plus: int = 0) -> int:
    """Return the first of `count` free ports in a row, with the same ones plus `also_plus` free too."""
    for _ in range(1000):
        # Below the range that the kernel hands out to clients.
        first = random.randrange(12000, 22000 - count)
        if all(is_free(first + i + offset) for i in range(count) for offset in {0, also_plus}):
            return first
    raise ServerError("no free ports")


def is_free(port: int) -> bool:
    """Say whether a port of loopback can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's remains are no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

"""The servers of `infra.devstack.servers` with keys and a bucket for tests, at free ports."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil

import infra.devstack.servers
from infra.devstack.server import Server, free_ports

__all__ = ["MlflowServer", "S3Server", "Server", "free_ports"]


class Watched(Server):
    """Ends with the process that started it, in whatever way that ends: a pipe to a watcher breaks then."""

    start_timeout_s = 600.0  # beside other tests on a machine of few cores
    _watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        super().start()
        process = self.process()
        assert process is not None
        script = 'cat > /dev/null; kill -9 "-$0"'
        self._watcher = subprocess.Popen(
            ["sh", "-c", script, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def _end(self, family: list[psutil.Process]) -> None:
        super()._end(family)
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None


class S3Server(Watched, infra.devstack.servers.S3Server):
    """An S3 server with a bucket for tests."""

    bucket = "crescendo-test"

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            access_key="test-access",
            secret_key="test-secret-0123456789",
            bucket=self.bucket,
            port=free_ports(self.num_ports, also_plus=10000),
        )


class MlflowServer(Watched, infra.devstack.servers.MlflowServer):
    """A tracking server over SQLite."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, port=free_ports(1))

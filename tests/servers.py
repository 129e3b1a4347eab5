"""The servers of `infra.servers` with keys and a bucket for tests, at free ports."""

from __future__ import annotations

from pathlib import Path

import infra.servers
from infra.servers import Server, free_ports

__all__ = ["MlflowServer", "S3Server", "Server", "free_ports"]


class S3Server(infra.servers.S3Server):
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


class MlflowServer(infra.servers.MlflowServer):
    """A tracking server over SQLite."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, port=free_ports(1))

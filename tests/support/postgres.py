"""A PostgreSQL server for tests, at a free port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.devstack.server import Server, free_ports, is_free

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or [Path(shutil.which("postgres") or "")]
PASSWORD = "database-password-%1"
ACCOUNT = "postgres" if os.getuid() == 0 else None
"""PostgreSQL refuses to run as root."""


class PostgresServer(Server):
    """PostgreSQL with a database `mlflow` and a password."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_ports(1)
        self.uri = f"postgresql://mlflow:{PASSWORD.replace('%', '%25')}@127.0.0.1:{self.port}/postgres"
        (folder / "password").write_text(PASSWORD)
        if ACCOUNT:
            for path in (folder, folder / "password"):
                shutil.chown(path, ACCOUNT)
        make = [str(POSTGRES[-1].with_name("initdb")), "-D", str(folder / "data"), "-U", "mlflow", "--no-sync"]
        login = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        subprocess.run([*make, *login], check=True, user=ACCOUNT, capture_output=True, cwd=folder)

    def command(self) -> list[str]:
        switches = ["-c", "fsync=off", "-c", f"unix_socket_directories={self.folder}", "-h", "127.0.0.1"]
        run = [str(POSTGRES[-1]), "-D", str(self.folder / "data"), "-p", str(self.port), *switches]
        return ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--init-groups", *run] if ACCOUNT else run

    def is_ready(self) -> bool:
        return not is_free(self.port)


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server; skip the test where there is none on this machine."""
    if not POSTGRES[-1].name:
        pytest.skip("PostgreSQL is not on this machine (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's folders are closed to other accounts
    server = PostgresServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)

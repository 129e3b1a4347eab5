"""The local stack: S3, MLflow, Ray head and Prometheus on loopback, in one folder, found again by process id."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from infra.devstack.server import Server, ServerError, free_ports, is_free
from infra.devstack.servers import LOOPBACK_RAY, MlflowServer, PrometheusServer, RayHead, S3Server

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "crescendo"
PROMETHEUS = "RAY_PROMETHEUS_HOST"
"""Where Ray's dashboard looks for Prometheus, whose charts it shows."""


class Stack:
    """The servers of a folder. Its file `env` says how to reach them, with the keys; only its owner may read it."""

    def __init__(self, folder: Path = ROOT / ".stack") -> None:
        self.folder = folder
        self.env_file = folder / "env"
        self.token_file = folder / "ray-token"

    def up(self) -> None:
        """Start what isn't running.

        Raises:
            ServerError: one of them did not start.
        """
        if not self.env_file.exists():
            self._settle()
        for server in self.servers().values():
            if server.process() is None:
                port = urlsplit(server.url).port or 0
                if not is_free(port):
                    raise ServerError(
                        f"port {port} is taken by another program: end it, or remove {self.env_file}; "
                        "then other ports are taken, and new keys are made"
                    )
                server.start()

    def down(self) -> None:
        """Stop what is running; data, keys and ports stay for the next start."""
        servers = self.servers() if self.env_file.exists() else {}
        for server in reversed(servers.values()):
            server.stop()
            if isinstance(server, RayHead):
                shutil.rmtree(server.session_folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Return what a client of the stack has in its environment.

        Raises:
            ServerError: the stack was never started.
        """
        if not self.env_file.exists():
            raise ServerError(f"{self.env_file} is not there: start the stack with `make up`")
        lines = self.env_file.read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines if line and not line.startswith("#"))

    def servers(self) -> dict[str, Server]:
        """Return the servers by name, in the order in which they start."""
        env = self.environment()
        s3 = S3Server(
            self.folder / "s3",
            access_key=env["AWS_ACCESS_KEY_ID"],
            secret_key=env["AWS_SECRET_ACCESS_KEY"],
            bucket=BUCKET,
            port=urlsplit(env["AWS_ENDPOINT_URL"]).port or 0,
        )
        mlflow = MlflowServer(
            self.folder / "mlflow",
            port=urlsplit(env["MLFLOW_TRACKING_URI"]).port or 0,
            artifacts=f"s3://{BUCKET}/mlflow",
            # boto3 knows no MLFLOW_S3_ENDPOINT_URL, and MLflow's store doesn't read boto3's name.
            extra_environment=s3.client_environment() | {"MLFLOW_S3_ENDPOINT_URL": s3.url},
        )
        ray = RayHead(
            self.folder / "ray",
            token_file=self.token_file,
            port=urlsplit(f"//{env['RAY_ADDRESS']}").port or 0,
            dashboard_port=urlsplit(env["RAY_API_SERVER_ADDRESS"]).port or 0,
            num_cpus=max(2, os.cpu_count() or 2),
            job_environment=s3.client_environment() | {name: env[name] for name in (PROMETHEUS,) if name in env},
        )
        servers: dict[str, Server] = {"s3": s3, "mlflow": mlflow, "ray": ray}
        if PROMETHEUS in env and PrometheusServer.is_installed():
            port = urlsplit(env[PROMETHEUS]).port or 0
            servers["prometheus"] = PrometheusServer(self.folder / "prometheus", port=port, targets=ray.targets)
        return servers

    def _settle(self) -> None:
        """Choose ports and make keys, once."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_secret(self.token_file, secrets.token_hex(32))
        s3_port = free_ports(S3Server.num_ports, also_plus=10000)
        ray_port = free_ports(RayHead.num_ports)
        lines = [
            "# How to reach the local stack. Made by `make up`; contains keys: do not share it.",
            f"AWS_ENDPOINT_URL=http://127.0.0.1:{s3_port}",
            f"AWS_ACCESS_KEY_ID={secrets.token_hex(10)}",
            f"AWS_SECRET_ACCESS_KEY={secrets.token_hex(20)}",
            "AWS_REGION=us-east-1",
            f"MLFLOW_TRACKING_URI=http://127.0.0.1:{_preferred(5000)}",
            f"RAY_ADDRESS=127.0.0.1:{ray_port}",
            f"RAY_API_SERVER_ADDRESS=http://127.0.0.1:{_preferred(8265)}",
            "RAY_AUTH_MODE=token",
            f"RAY_AUTH_TOKEN_PATH={self.token_file}",
            f"{PROMETHEUS}=http://127.0.0.1:{_preferred(9090)}",
            *(f"{name}={value}" for name, value in LOOPBACK_RAY.items()),
        ]
        self._write_secret(self.env_file, "\n".join(lines) + "\n")

    @staticmethod
    def _write_secret(path: Path, text: str) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)


def _preferred(port: int) -> int:
    return port if is_free(port) else free_ports(1)

"""An MLflow server for a team: `python -m infra.mlflow_serve`, with users and passwords, artifacts through it to S3.

Its settings are environment variables, so that no secret is on a command line:

    MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD   its administrator; the same two names as clients use
    MLFLOW_BACKEND_STORE_URI     postgresql://USER:PASSWORD@HOST/NAME, or sqlite:////FILE for a small team
    MLFLOW_ARTIFACTS             s3://BUCKET/PREFIX, reached with the usual AWS variables or the machine's role
    MLFLOW_AUTH_DATABASE_URI     where users are kept; without it, the backend store
    MLFLOW_HOSTS                 names, as mlflow.example.com, by which clients call it, beside private addresses
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

NEEDED = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS")
MIN_PASSWORD = 12


def settings(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of the server, from that of this process; writes the file of its settings to `folder`.

    Raises:
        ValueError: a variable is missing, or the password is short.
    """
    missing = [name for name in NEEDED if not given.get(name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be set; `python -m infra.mlflow_serve --help` explains them")
    if len(given["MLFLOW_TRACKING_PASSWORD"]) < MIN_PASSWORD:
        raise ValueError(f"MLFLOW_TRACKING_PASSWORD has fewer than {MIN_PASSWORD} characters; MLflow refuses it")
    database = (given.get("MLFLOW_AUTH_DATABASE_URI") or given["MLFLOW_BACKEND_STORE_URI"]).replace("%", "%%")
    file = folder / "basic_auth.ini"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\n")
    set_here = {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        "MLFLOW_AUTH_ADMIN_USERNAME": given["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": given["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": given.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if given.get("AWS_ENDPOINT_URL"):
        set_here["MLFLOW_S3_ENDPOINT_URL"] = given["AWS_ENDPOINT_URL"]
    # The server is no client of itself: it would ask itself for its runs.
    kept = {name: value for name, value in given.items() if name not in ("MLFLOW_TRACKING_URI", *NEEDED[:2])}
    return kept | set_here


def command(host: str, port: int, workers: int, given: Mapping[str, str]) -> list[str]:
    """Return the server's command."""
    address = ["--host", host, "--port", str(port), "--workers", str(workers)]
    artifacts = ["--artifacts-destination", given["MLFLOW_ARTIFACTS"]]
    names = [name for name in given.get("MLFLOW_HOSTS", "").split(",") if name]
    patterns = ("localhost*", "127.0.0.1*", "10.*", "172.*", "192.168.*", *names, *(f"{name}:*" for name in names))
    hosts = ["--allowed-hosts", ",".join(patterns)] if names else []
    return [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *address, *artifacts, *hosts]


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of this machine's")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    try:
        environment = settings(os.environ, Path(tempfile.mkdtemp(prefix="mlflow-")))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    arguments = command(options.host, options.port, options.workers, environment)
    os.execve(arguments[0], arguments, environment)


if __name__ == "__main__":
    main()

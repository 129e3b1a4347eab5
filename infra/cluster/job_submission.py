"""Jobs on a Ray cluster, through its dashboard's address: submit one, follow its output, stop it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.cluster.code_package import packed_code
from infra.cluster.config import ClusterError
from infra.cluster.connect import token_problem
from infra.redact import redacted, redacted_values

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI", "CRESCENDO_TRACEBACK")
"""Variables that a job gets from the submitter's environment. Keys are not among them: Ray writes a job's variables
into logs, and onto the command lines of the processes that it starts. Keys are the nodes' own: by their role, or in the
environment of `ray start`."""

ORIGIN_VARIABLE = "CRESCENDO_ORIGIN"
"""Tells a job, as JSON, which tags its run gets in MLflow on where it comes from."""

_STOPPING = {
    # A stopped job is interrupted as by Ctrl-C, and has this long for its last checkpoint; by default SIGTERM and 3 s.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "600",
}
RECONNECT_S = 2.0
LOST_AFTER_S = 120.0
"""A dashboard that doesn't answer for this long is not followed any more; the job doesn't need it."""


def open_client(dashboard: str = "") -> JobSubmissionClient:
    """Return a client of the cluster whose dashboard is at `dashboard`, or at RAY_API_SERVER_ADDRESS.

    Raises:
        ClusterError: nothing answers there, or it refuses the token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    from infra.cluster.ray_private import CHATTY_LOGGERS

    address = dashboard or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise ClusterError(_refused(address)) from None
    except (ConnectionError, ValueError) as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address} ({type(error).__name__}): name its URL with --dashboard or "
            "RAY_API_SERVER_ADDRESS; to a cluster elsewhere, `ray dashboard CLUSTER.yaml` opens a tunnel"
        ) from None
    except RuntimeError as error:
        if "401" in str(error) or "403" in str(error):
            raise ClusterError(_refused(address)) from None
        raise


def _refused(address: str) -> str:
    return f"the Ray dashboard at {address} {token_problem()}"


def submit(client: JobSubmissionClient, entrypoint: str, *, name: str, origin: Mapping[str, str] | None = None) -> str:
    """Submit a command that runs in a copy of this repository on the cluster's head; return the job's id.

    Args:
        client: of the cluster.
        entrypoint: the shell command; anyone who may look at the cluster can read it, so it holds no secrets.
        name: first part of the job's id.
        origin: tags for MLflow on the submitter and its code; those on the job are added.

    Raises:
        ClusterError: a variable that the job would get holds a password.
    """
    variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    for variable, value in variables.items():
        if redacted(value) != value:
            raise ClusterError(
                f"{variable} holds a user or password, which anyone on the cluster could read: take it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment of the nodes"
            )
    submission = f"{name}-{uuid.uuid4().hex[:8]}"
    about = {"mlflow.source.type": "JOB", "ray.job": submission, "ray.page": job_page(client, submission)}
    variables[ORIGIN_VARIABLE] = json.dumps(redacted_values({**(origin or {}), **about}))
    with packed_code() as code:
        job_id = client.submit_job(
            entrypoint=entrypoint,
            submission_id=submission,
            runtime_env={"working_dir": code, "env_vars": variables | _STOPPING},
            metadata={"run": name},
        )
    return str(job_id)


def job_page(client: JobSubmissionClient, job_id: str) -> str:
    """Return the URL of a job's page in the dashboard, as this process reaches it."""
    return f"{client.get_address()}/#/jobs/{job_id}"


def follow(client: JobSubmissionClient, job_id: str) -> str:
    """Print what a job prints until it ends; return its last status, as `SUCCEEDED`, and the cause in words.

    Raises:
        ClusterError: the dashboard has not answered for two minutes.
    """
    printed, heard = 0, time.monotonic()
    while True:
        try:
            # A connection begins with all that was printed so far.
            printed = asyncio.run(_tail(client, job_id, printed))
            info = client.get_job_info(job_id)
            if info.status.is_terminal():
                return f"{info.status.value}: {info.message or ''}"
            heard = time.monotonic()
        except (RuntimeError, OSError) as error:
            if time.monotonic() - heard > LOST_AFTER_S:
                raise ClusterError(
                    f"the Ray dashboard no longer answers ({type(error).__name__}); the job may still be running: "
                    f"`ray job status {job_id}` once it is back"
                ) from None
        time.sleep(RECONNECT_S)


async def _tail(client: JobSubmissionClient, job_id: str, skip: int) -> int:
    seen = 0
    async for text in client.tail_job_logs(job_id):
        fresh = text[max(0, skip - seen) :]
        seen += len(text)
        sys.stdout.write(fresh)
        sys.stdout.flush()
    return max(seen, skip)

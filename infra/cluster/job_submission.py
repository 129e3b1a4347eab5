"""Jobs on a Ray cluster, through its dashboard's address: submit one, follow its output, stop it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from infra.cluster.config import ClusterError
from infra.cluster.connect import token_problem
from infra.redact import redacted, redacted_values
from infra.storage.failures import FailureClass

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

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
_UNKNOWN = "status code 404"
"""What the dashboard says of a job that it doesn't know."""
_OWN_FAULTS = ("JOB_ENTRYPOINT_COMMAND_ERROR", "JOB_ENTRYPOINT_COMMAND_START_ERROR", "RUNTIME_ENV_SETUP_FAILURE")
"""Ray's names for failures of the command itself; all others are the cluster's."""
_KILLED = {code for number in (signal.SIGKILL, signal.SIGTERM) for code in (-number, 128 + number)}
"""Exit codes of a driver that something else has ended, as the system when its memory ran out."""


class HeadAwayError(ClusterError):
    """No head answers at the dashboard's address."""

    failure = FailureClass.TRANSIENT


class JobLostError(ClusterError):
    """The cluster lost the job, with its head or its driver: the same command resumes its run."""

    failure = FailureClass.TRANSIENT


def open_client(dashboard: str) -> JobSubmissionClient:
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
        raise HeadAwayError(
            f"no Ray dashboard answers at {address} ({type(error).__name__}): name its URL with --dashboard or "
            "RAY_API_SERVER_ADDRESS; to a cluster elsewhere, `ray dashboard CLUSTER.yaml` opens a tunnel"
        ) from None
    except RuntimeError as error:
        if "401" in str(error) or "403" in str(error):
            raise ClusterError(_refused(address)) from None
        raise


def _refused(address: str) -> str:
    return f"the Ray dashboard at {address} {token_problem()}"


def submit(
    client: JobSubmissionClient, entrypoint: str, *, name: str, code: str, origin: Mapping[str, str] | None = None
) -> str:
    """Submit a command that runs in a copy of this repository on the cluster's head; return the job's id.

    Args:
        client: of the cluster.
        entrypoint: the shell command; anyone who may look at the cluster can read it, so it holds no secrets.
        code: archive of the repository's modules, from `packed_code`.
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
        JobLostError: the head doesn't know the job, which another one had; the cluster or its system ended the job; or
            the dashboard has not answered for two minutes.
    """
    import aiohttp

    output, away_since = _Output(), math.inf
    while True:
        with suppress(RuntimeError, OSError, aiohttp.ClientError):  # why the connection ended is asked next
            asyncio.run(output.show(client.tail_job_logs(job_id)))
        try:
            if ended := _ended(client, job_id):
                return ended
            away_since = math.inf
        except (RuntimeError, OSError) as error:
            now = time.monotonic()
            # A connection lasts for hours, in which nothing is asked.
            away_since = now if output.heard > away_since else min(away_since, now)
            if now - away_since > LOST_AFTER_S:
                raise JobLostError(
                    f"the Ray dashboard no longer answers ({type(error).__name__}); {job_id} may still be running"
                ) from None
        time.sleep(RECONNECT_S)


def _ended(client: JobSubmissionClient, job_id: str) -> str:
    """Return the last status of a job that has ended, with the cause in words; empty of one that runs."""
    try:
        info = client.get_job_info(job_id)
    except RuntimeError as error:
        if _UNKNOWN in str(error):
            raise JobLostError(f"{job_id} was lost with its head") from None
        raise
    if not info.status.is_terminal():
        return ""
    if info.status.value == "FAILED" and (why := _loss(info)):
        raise JobLostError(f"{job_id} was lost: {why}")
    return f"{info.status.value}: {info.message or ''}"


def _loss(info: JobDetails) -> str:
    """Say how the cluster lost a job that has failed; empty where it failed by itself."""
    if info.error_type and info.error_type not in _OWN_FAULTS:
        return (info.message or info.error_type).partition("\n")[0]
    if info.driver_exit_code == os.EX_TEMPFAIL:
        return "its run was lost, or could not begin yet, as it says above"
    return f"its driver was killed (exit code {info.driver_exit_code})" if info.driver_exit_code in _KILLED else ""


class _Output:
    """What a job prints, shown once: each connection begins with all that was printed so far."""

    def __init__(self) -> None:
        self._shown = 0
        self.heard = -math.inf
        """When it last came, by the monotonic clock."""

    async def show(self, texts: AsyncIterator[str]) -> None:
        """Show what one connection says beyond what was shown, until it ends or breaks off."""
        seen = 0
        async for text in texts:
            sys.stdout.write(text[max(0, self._shown - seen) :])
            sys.stdout.flush()
            seen, self.heard = seen + len(text), time.monotonic()
            self._shown = max(self._shown, seen)

"""A job that is submitted again when the cluster lost it, until it ends by itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from infra.cluster.job_submission import HeadAwayError, JobLostError, open_client

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Answer = TypeVar("Answer")

HEAD_WAIT_S = 3600.0
"""For how long a head is waited for, in seconds: its supervisor or an operator starts a new one."""
ASK_EVERY_S = 5.0
QUICK_LOSS_S = 300.0
"""A job that is lost this soon after its start, in seconds, will be lost again soon: it is started after a pause."""
MAX_PAUSE_S = 300.0
_NOT_READY = re.compile(r"status code 5\d\d")
"""What a head says whose parts have not all started."""


def follow_over_losses(
    dashboard: str,
    *,
    retries: int,
    start: Callable[[JobSubmissionClient], str],
    follow: Callable[[JobSubmissionClient, str], Answer],
    tell: Callable[[str], None] = print,
) -> Answer:
    """Start a job and follow it to its end; when the cluster loses it, wait for a head and start it again.

    Where that happens soon after each start, as while its MLflow server is away, the waits grow to five minutes.

    Args:
        dashboard: of the cluster, as `open_client` takes it: the next head has the same address.
        retries: how often it is started again.
        start: submits the job, or finds the one that is running already; returns its id.
        follow: returns when the job has ended by itself.
        tell: takes lines for the user.

    Raises:
        JobLostError: it was lost once more than `retries`.
        HeadAwayError: no head answers; or none does for an hour, after it was lost.
        ClusterError: the cluster refuses the token or the job; or whatever `follow` raises.
    """
    client = open_client(dashboard)
    job_id, quick = start(client), 0
    for left in reversed(range(retries + 1)):
        began = time.monotonic()
        try:
            return follow(client, job_id)
        except JobLostError as error:
            if not left:
                raise
            quick = quick + 1 if time.monotonic() - began < QUICK_LOSS_S else 0
            pause_s = min(ASK_EVERY_S * 2 ** (quick - 2), MAX_PAUSE_S) if quick > 1 else 0.0
            tell(f"{error}; waiting for a head to start it again ({left} {'retries' if left > 1 else 'retry'} left)")
            time.sleep(pause_s)
            client, job_id = _when_a_head_answers(dashboard, start)
    raise AssertionError("unreachable")


def _when_a_head_answers(
    dashboard: str, start: Callable[[JobSubmissionClient], str]
) -> tuple[JobSubmissionClient, str]:
    until = time.monotonic() + HEAD_WAIT_S
    while True:
        try:
            client = open_client(dashboard)
            return client, start(client)
        except (HeadAwayError, OSError, RuntimeError) as error:
            if not _may_pass(error) or time.monotonic() > until:
                raise
        time.sleep(ASK_EVERY_S)


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, RuntimeError) or bool(_NOT_READY.search(str(error)))


def running_job(client: JobSubmissionClient, run: str) -> str:
    """Return the id of the job that trains a run on this cluster; empty if there is none."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get("run") == run]
    return next((str(job.submission_id) for job in jobs if not job.status.is_terminal()), "")

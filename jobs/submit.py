"""Train a recipe on a Ray cluster: `python -m jobs.submit RECIPE [--field value ...]`, as a job of the cluster."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from infra.cluster.code_package import packed_code
from infra.cluster.config import ClusterError
from infra.cluster.job_submission import follow, job_page, open_client, submit
from infra.cluster.resubmission import follow_over_losses, running_job
from infra.redact import redacted_command
from jobs.common.cli import parse_recipe, resolve, run_main
from jobs.common.extension import ExtendFlags
from jobs.common.facts import rules_for, written
from jobs.common.parsing import UsageError, parse_known
from jobs.recipes.generic import GENERIC
from pipeline.config import TrainConfig
from pipeline.run.origin import submitter_tags
from pipeline.run.reachability import check_reachable

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(ExtendFlags):
    """Flags of the submission; all others are the run's."""

    dashboard: str = ""
    """URL of the cluster's dashboard. Empty: RAY_API_SERVER_ADDRESS, or else http://127.0.0.1:8265."""
    detach: bool = False
    """Return once the job is submitted, instead of showing its output."""
    retries: int = 0
    """How often to submit the job again after the cluster lost it, with its head or its driver: by then the run resumes
    from its last checkpoint. Waits up to an hour for a head at the same address. A job of this run that is running
    already is followed. A run that fails by itself is not submitted again."""

    def __post_init__(self) -> None:
        ExtendFlags.__post_init__(self)
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}: it must be 0 (off) or more")
        if self.retries and self.detach:
            raise ValueError("retries needs a submission that follows its job: leave out --detach")


def main(argv: Sequence[str]) -> int:
    """Submit and follow. Exit code 0: the job succeeded, or continues without us; 75: the cluster lost it."""
    if not argv or argv[0] in ("-h", "--help"):
        parse_recipe(argv, prog="python -m jobs.submit")
    # Here and once: the cluster's head, and each start after a failure, may be another machine.
    recipe, *rest = argv = resolve(argv).argv
    config, _ = parse_recipe(argv, prog="python -m jobs.submit", extra=Options)
    options, fields = parse_known(Options, rest, prog="python -m jobs.submit")
    config = options.of(config, is_elsewhere=True)
    check_reachable(config)
    if redacted_command(fields) != shlex.join(fields):
        raise UsageError("a flag holds a user or password, which anyone on the cluster could read: leave it out")
    if recipe in GENERIC:
        print(f"facts   {written(rules_for(argv).facts)}: of another cluster give cpus, gpus and gpu-memory by --facts")
    with packed_code() as code:  # the same for each submission, whatever is edited meanwhile
        entrypoint = shlex.join(["python", "-m", "jobs.train", recipe, *fields, *options.words])
        start = partial(_start, config, entrypoint, code, options)
        if options.detach:
            start(open_client(options.dashboard))
            return 0
        return follow_over_losses(options.dashboard, retries=options.retries, start=start, follow=_follow)


def _start(config: TrainConfig, entrypoint: str, code: str, options: Options, client: JobSubmissionClient) -> str:
    """Submit the run, or find its job that is running already; return the job's id."""
    job_id = running_job(client, config.name) if options.retries else ""
    if job_id:
        print(f"{config.name} is being trained by a job already, which is followed")
    else:
        job_id = submit(client, entrypoint, name=config.name, code=code, origin=submitter_tags())
    _announce(config, job_page(client, job_id), job_id)
    return job_id


def _announce(config: TrainConfig, page: str, job_id: str) -> None:
    print(f"job     {job_id}   {page}")
    print(f"run     {config.name}   {config.storage}/{config.name}")
    print(f"MLflow  {config.tracking.ui_command()}")
    print(f"stop it with `ray job stop {job_id}`; the same command again resumes the run", flush=True)


def _follow(client: JobSubmissionClient, job_id: str) -> int:
    try:
        status = follow(client, job_id)
    except KeyboardInterrupt:
        if not _wants_stop():
            print(f"\n{job_id} continues: `ray job logs --follow {job_id}` shows it, `ray job stop {job_id}` stops it")
            return 0
        client.stop_job(job_id)
        print("stopping with a checkpoint", flush=True)
        status = follow(client, job_id)
    kind, _, message = status.partition(": ")
    if kind == "FAILED":
        # Ray adds the end of the log, which is on the screen already.
        reason = message.partition("\n")[0].partition(", last available logs")[0]
        raise ClusterError(f"{job_id} failed: {reason or 'see above'}")
    return 0


def _wants_stop() -> bool:
    """Ask what Ctrl-C means; without a terminal it means that the job continues."""
    if not sys.stdin.isatty():
        return False
    try:
        return input("\n[d]etach, the job continues, or [s]top it with a checkpoint? ").strip().lower().startswith("s")
    except (EOFError, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    run_main(main)

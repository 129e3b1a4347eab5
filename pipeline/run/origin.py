"""Where a run was submitted: job, commit, user. As MLflow's tags, taken by who submits: a node has no repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from infra.cluster.job_submission import ORIGIN_VARIABLE
from infra.redact import redacted
from infra.tracking.mlflow_run import user_name

ROOT = Path(__file__).resolve().parents[2]
GIT_TIMEOUT_S = 10.0
"""A repository on a slow disk holds up no run for longer."""


def origin_tags() -> dict[str, str]:
    """Return the tags of a run that this process starts: those that `jobs.submit` has given this job, or its own."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": _job()}
    if (given := os.environ.get(ORIGIN_VARIABLE)) is None:
        return tags | submitter_tags()
    with suppress(ValueError, AttributeError):  # what a user has set by hand
        tags |= {str(name): str(value) for name, value in json.loads(given).items()}
    return tags


def submitter_tags(root: Path = ROOT) -> dict[str, str]:
    """Return the tags on this process's user and the repository at `root`; only the user's where there is none."""
    tags = {"mlflow.user": user_name()}
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return tags
    tags |= {"mlflow.source.git.commit": commit}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    tags |= {"mlflow.source.git.dirty": "true" if changed else "false"} if changed is not None else {}
    branch, url = _git(root, "branch", "--show-current"), _git(root, "config", "--get", "remote.origin.url")
    tags |= {"mlflow.source.git.branch": branch} if branch else {}
    return tags | ({"mlflow.source.git.repoURL": redacted(url)} if url else {})


def _job() -> str:
    """Return the script that runs, from the repository's root; of one elsewhere, only its name."""
    script = Path(sys.argv[0]).resolve()
    return str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name


def _git(root: Path, *command: str) -> str | None:
    """Return what git prints; None where it is not installed, refuses, or is too slow."""
    # Without a lock: a commit of the user's at this moment must not fail because of us.
    call = ["git", "--no-optional-locks", "-C", str(root), *command]
    try:
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

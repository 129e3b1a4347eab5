"""Where a run comes from: taken where it is submitted, and the same on the node, which has no repository."""

from __future__ import annotations

import getpass
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.job_submission import ORIGIN_VARIABLE, submit
from pipeline.run import origin
from pipeline.run.origin import origin_tags, submitter_tags


def git(folder: Path, *command: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", str(folder), *name, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "wide")
    (tmp_path / "recipe.py").write_text("lr = 1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


class Cluster:
    """Takes the place of a cluster's client, and keeps what is submitted."""

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, **job: Any) -> str:
        self.job = job
        return str(job["submission_id"])


def test_commit_branch_and_changes_are_told(repository: Path) -> None:
    tags = submitter_tags(repository)
    commit = git(repository, "rev-parse", "HEAD")
    found = {name.removeprefix("mlflow.source.git."): value for name, value in tags.items()}
    assert found == {"mlflow.user": getpass.getuser(), "commit": commit, "dirty": "false", "branch": "wide"}
    (repository / "notes").write_text("not of the code")
    assert submitter_tags(repository)["mlflow.source.git.dirty"] == "false"
    (repository / "recipe.py").write_text("lr = 2")
    assert submitter_tags(repository)["mlflow.source.git.dirty"] == "true"


def test_a_remote_is_told_without_its_token(repository: Path) -> None:
    git(repository, "remote", "add", "origin", "https://me:t0ken@example.org/code.git")
    assert submitter_tags(repository)["mlflow.source.git.repoURL"] == "https://example.org/code.git"


@pytest.mark.parametrize("broken", ["no repository", "no commit", "no git"])
def test_without_a_commit_there_is_still_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken == "no commit":
        git(tmp_path, "init", "-q")
    if broken == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert submitter_tags(tmp_path) == {"mlflow.user": getpass.getuser()}


def test_a_job_has_its_submitters_tags(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = submitter_tags(repository)
    cluster = Cluster()
    submit(cluster, "python -m jobs.train", name="wide", code="code.zip", origin=told)  # type: ignore[arg-type]
    job = cluster.job
    monkeypatch.setenv(ORIGIN_VARIABLE, job["runtime_env"]["env_vars"][ORIGIN_VARIABLE])
    monkeypatch.setattr("sys.argv", [str(origin.ROOT / "jobs" / "train.py")])
    monkeypatch.setenv("USER", "root-of-a-node")
    page = f"http://head:8265/#/jobs/{job['submission_id']}"
    ray = {"ray.job": job["submission_id"], "ray.page": page}
    source = {"mlflow.source.type": "JOB", "mlflow.source.name": "jobs/train.py"}
    assert origin_tags() == told | ray | source


@pytest.mark.parametrize("given", ["", "[1]", "not JSON", json.dumps("text")])
def test_a_variable_that_is_not_ours_is_passed_over(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ORIGIN_VARIABLE, given)
    monkeypatch.setattr("sys.argv", ["/home/me/bin/own.py"])
    assert origin_tags() == {"mlflow.source.type": "LOCAL", "mlflow.source.name": "own.py"}

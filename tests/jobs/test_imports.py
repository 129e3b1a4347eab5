"""What a command imports before it says something: seconds, which its user waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "ray", "mlflow", "pandas", "matplotlib", "scipy", "optuna", "webdataset", "boto3"}
"""Packages that take over 0.2 s to import."""
VERBS = sorted(f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("[a-z]*.py") if path.stem != "models")
"""All commands but the one that builds each model."""


def imported(modules: list[str]) -> set[str]:
    program = f"import {', '.join(modules)}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return {*done.stdout.split()} & HEAVY


def test_no_command_imports_what_takes_long_before_it_reads_its_arguments() -> None:
    assert imported(VERBS) == set()


@pytest.mark.parametrize("module", ["pipeline.control.controller", "pipeline.run.worker_group"])
def test_a_runs_controller_needs_no_model_code(module: str) -> None:
    assert imported([module]) <= {"ray"}

"""What the processes of a run import before its first step: seconds, which its user waits, and memory.

A budget is what a process may import, not a time, which says little on a busy machine.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.run.worker_imports import FIRST, LATER
from tests.support.shards import write_shards

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("torch", "torch._dynamo.eval_frame", "torchvision", "torchmetrics", "ray", "mlflow", "sqlalchemy", "pandas"),
    *("matplotlib", "scipy", "optuna", "webdataset", "boto3"),
}
"""Packages that take over 0.2 s to import."""
VERBS = sorted(f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("[a-z]*.py") if path.stem != "models")
"""All commands but the one that builds each model."""


WITH_RAY_TRAIN = {"ray", "pandas"}
"""Ray Train imports pandas itself."""


def imported_by(program: str) -> set[str]:
    program = f"{program}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return {*done.stdout.split()} & HEAVY


def imported(modules: list[str]) -> set[str]:
    return imported_by(f"import {', '.join(modules)}")


def test_no_command_imports_what_takes_long_before_it_reads_its_arguments() -> None:
    assert imported(VERBS) == set()


def test_a_driver_is_ready_to_train_with_nothing_but_ray(tmp_path: Path) -> None:
    """Its data and storage are checked, and MLflow is prepared, in a process that ends."""
    write_shards(tmp_path / "data", [60, 60])
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    argv = ["fonts_small", "--storage", str(tmp_path), "--tracking.uri", uri, "--name", "budget"]
    argv += ["--data.train", str(tmp_path / "data"), "--data.val", str(tmp_path / "data")]
    program = f"""
from infra.tracking.prepare_process import prepared_meanwhile
from jobs.common.cli import parse_recipe
from pipeline.run.preflight import preflight
config, _ = parse_recipe({argv}, prog="train")
with prepared_meanwhile(preflight(config, prepare_tracking=False).config.tracking):
    pass
"""
    assert imported_by(program) == {"ray"}
    assert (tmp_path / "mlflow.db").is_file()


def test_a_runs_controller_starts_worker_groups_without_pytorch() -> None:
    modules = ["pipeline.control.controller", "pipeline.run.worker_group"]
    assert imported(modules) <= {"ray"}
    assert imported([*modules, "pipeline.run.ray_policies", "pipeline.run.process_group"]) <= WITH_RAY_TRAIN


def test_a_worker_imports_no_compiler_and_nothing_of_mlflow_before_its_first_step() -> None:
    """`scipy.special` is Mixup's."""
    own = {"torch", "torchvision", "scipy"} | WITH_RAY_TRAIN
    assert imported_by("from pipeline.run.worker_imports import warm_up_eager; warm_up_eager()") == own


def test_each_import_of_a_spare_process_is_there() -> None:
    """One that isn't would be left out silently."""
    for name in (*FIRST, *LATER):
        assert find_spec(name) is not None, name

"""Ray's private names: in two files only, checked when these are imported, and told in one line where they are gone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cluster import ray_private
from infra.cluster.code_package import ROOT, code_files
from infra.cluster.config import RayVersionError
from infra.cluster.ray_private import check_attributes, check_names, check_release

ALLOWED = {Path("infra/cluster/ray_private.py"), Path("pipeline/run/ray_policies.py")}
PRIVATE = re.compile(
    r"ray(\.\w+)*\.(_[^_]\w+|core|dashboard)\b|ray\.(train|tune)\.v2\b|__RAY_\w+|RAY_JOB_CONFIG_JSON_ENV_VAR"
)
"""Modules, loggers and environment variables that are no part of Ray's public API."""


S3 = ("--storage=s3://b/p", "--data.train=s3://b/t", "--data.val=s3://b/v")


def chain(node: ast.expr) -> str:
    """The dotted name that an expression is, as `ray.util.state`; empty for any other."""
    if isinstance(node, ast.Attribute):
        inner = chain(node.value)
        return inner and f"{inner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each imported or dotted name and each text of a module that is no docstring, with its line."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, chain(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def private_uses(source: str) -> list[str]:
    return [f"{line}: {name}" for line, name in names(ast.parse(source)) if PRIVATE.match(name)]


def others_underscores(source: str) -> list[str]:
    """Attributes with a leading underscore of anything but `self`, in a module that uses Ray."""
    tree = ast.parse(source)
    if not any(re.match(r"ray\b", name) for _, name in names(tree)):
        return []
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_[^_]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.state",
        "from ray._private import services",
        "from ray.train.v2.api.config import LoggingConfig",
        "from ray.core.generated import gcs_pb2",
        "from ray.data._internal.x import y",
        "def f():\n    import ray\n    ray._raylet.GcsClient()",
        "m = ('ray.train.v2._internal.worker',)",
        "e = {'__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR': 1}",
    ],
)
def test_private_uses_are_found(source: str) -> None:
    assert private_uses(source)


@pytest.mark.parametrize(
    "source", ["import ray.util.state", "from ray.train import LoggingConfig", "'''ray._private'''\nx = 'crayons._x'"]
)
def test_public_ones_and_texts_about_them_are_not(source: str) -> None:
    assert private_uses(source) == []


def test_only_two_files_use_what_ray_keeps_to_itself() -> None:
    found = {}
    for path in {path for path in code_files(ROOT) if path.suffix == ".py"} - ALLOWED:
        source = (ROOT / path).read_text()
        if uses := private_uses(source) + others_underscores(source):
            found[str(path)] = uses
    assert found == {}
    assert all(private_uses((ROOT / path).read_text()) for path in ALLOWED)


def test_no_command_looks_at_rays_names_before_it_can_tell_what_is_wrong() -> None:
    """Errors at the import of a command would be tracebacks."""
    verbs = [f"jobs.{path.stem}" for path in sorted((ROOT / "jobs").glob("[a-z]*.py"))]
    program = f"import {', '.join(verbs)}, sys; print({{'infra.cluster.ray_private'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("version", ["2.59.3", "2.61.0", "2.6.0", "3.0.0.dev0"])
def test_another_release_of_ray_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private.ray, "__version__", version)
    with pytest.raises(
        RayVersionError, match=rf"^Ray {version} is installed, but only 2\.60 is supported: run `make set"
    ):
        check_release()


def test_a_later_fix_of_the_release_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private.ray, "__version__", "2.60.3")
    check_release()


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("ray._private.gone:function", (), r"has no ray\._private\.gone:function"),
        ("ray._private.services:gone", (), r"has no ray\._private\.services:gone"),
        ("ray._private.services:find_gcs_addresses", ("address",), r"takes \(\), but \('address',\) is expected"),
    ],
)
def test_a_name_that_is_gone_or_takes_something_else_is_named(
    name: str, parameters: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RayVersionError, match=said) as caught:
        check_names({name: parameters})
    assert "run `make setup`" in str(caught.value)


def test_what_ray_adds_to_the_methods_of_an_actor_class_is_no_other_signature() -> None:
    """As where a process has made an actor of one of them before."""
    from ray.train.v2._internal.execution.controller import TrainController

    from pipeline.run.ray_policies import NAMES

    ray_private.ray.remote(num_cpus=0)(TrainController)
    check_names(NAMES)


def test_an_attribute_that_is_gone_is_named() -> None:
    with pytest.raises(RayVersionError, match=r"has no \w*Path\._gone"):
        check_attributes(Path(), "_gone")


COMMANDS = (
    ("jobs.train", "demo", "--data.train", "nowhere", "--data.val", "nowhere"),
    ("jobs.status",),
    ("jobs.status", "--address", "127.0.0.1:1"),
    ("jobs.control", "run", "stop"),
    ("jobs.submit", "demo_scratch", *S3, "--tracking.uri=http://127.0.0.1:1"),
    ("jobs.doctor", "demo"),
)
NEWER = """
import importlib, os, sys
import ray
ray.__version__ = "2.61.0"
for name, *arguments in COMMANDS:
    if os.fork() == 0:  # each in a process of its own, that needn't import Ray again
        sys.argv[1:] = arguments
        from jobs.common.cli import run_main
        run_main(importlib.import_module(name).main)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr, flush=True)
"""


def test_a_newer_ray_is_one_line_wherever_a_user_meets_it() -> None:
    program = NEWER.replace("COMMANDS", repr(COMMANDS))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[1::2] == [f"{name} 2" for name, *_ in COMMANDS], done.stderr
    for line in lines[::2]:
        assert line.startswith("error: Ray 2.61.0 is installed, but only 2.60 is supported: run `make setup`")

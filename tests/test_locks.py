"""The lock files: nodes and the tests run the same versions, and nodes get no tools."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ON_NODES = ("export", "lite0", "server", "tiff", "timm")
"""Extras: a job on a cluster may export, log models, use timm, TIFF and weights; the head may serve MLflow."""


def locked(name: str) -> dict[str, str]:
    """The pin of each package, with the platforms that it is for."""
    pins: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s]+( ; .+)?", line), f"{name}: {line!r} is no pin"
        package, _, rest = line.partition("==")
        pins[package] = f"{pins.get(package, '')}\n{rest}"
    return pins


def asked() -> tuple[list[Requirement], list[Requirement]]:
    """What pyproject.toml asks for: of nodes, and beside that of a developer."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    runtime = [*project["project"]["dependencies"], *(line for name in ON_NODES for line in extras[name])]
    others = [line for name, lines in extras.items() if name not in ON_NODES for line in lines]
    dev = [*others, *project["dependency-groups"]["dev"]]
    return [Requirement(line) for line in runtime], [Requirement(line) for line in dev]


def test_nodes_and_developers_have_the_same_versions() -> None:
    runtime, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: pin for name, pin in runtime.items() if dev.get(name) != pin} == {}


def test_each_lock_holds_what_it_is_for() -> None:
    runtime, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    for requirements, locks in (asked()[0], [runtime, dev]), (asked()[1], [dev]):
        for requirement in requirements:
            name = canonicalize_name(requirement.name)
            for pins in locks:
                versions = re.findall(r"^[^\s;]+", pins.get(name, ""), re.MULTILINE)
                assert versions, f"{name}: run `make lock`"
                assert all(map(requirement.specifier.contains, versions)), f"{requirement}, {versions}: run `make lock`"
    assert {canonicalize_name(requirement.name) for requirement in asked()[1]} & runtime.keys() == set()


def test_nodes_install_the_runtime_lock() -> None:
    for name in ("Dockerfile", "ray_cluster.yaml", "infra/local_cluster.yaml"):
        used = re.findall(r"requirements[\w-]*\.lock", (ROOT / name).read_text())
        assert set(used) == {"requirements.lock"}, name

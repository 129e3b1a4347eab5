"""The documents: every command in them exists and takes its flags; every link leads somewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from jobs.recipes.catalog import RECIPES
from jobs.recipes.comparisons import COMPARISONS

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PACKAGES = ("jobs.benchmark", "tests.chaos")
"""What `python -m` runs that is a package."""


def commands() -> dict[str, list[str]]:
    """Every `python -m MODULE ...` of the documents, with where it stands."""
    found: dict[str, list[str]] = {}
    for path in DOCS:
        text = path.read_text().replace("\\\n", " ")
        for match in re.finditer(r"python3? -m ((?:jobs\.|infra\.|tests\.chaos)[^`\n]*)", text):
            line = match.group(1).partition(" #")[0].strip()
            if "{" not in line.split()[0]:
                found.setdefault(line, []).append(path.name)
    return found


OF_A_RECIPE = tuple(f"jobs.{job}" for job in ("train", "submit", "plan", "doctor", "sweep", "search", "compare"))
"""Jobs whose first word is a recipe, of which `--help` lists the common flags alone."""


@cache
def help_of(module: str, *arguments: str) -> str:
    main = importlib.import_module(f"{module}.__main__" if module in PACKAGES else module).main
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        main([*arguments, "--help-all" if module in OF_A_RECIPE and arguments else "--help"])
    assert end.value.code in (0, None), said.getvalue()
    return said.getvalue()


def first_words(module: str, arguments: list[str]) -> list[str]:
    """The word on which the help depends: a recipe, or what is prepared, measured or compared."""
    first = arguments[0] if arguments else ""
    if module in ("jobs.prepare", "jobs.benchmark") or first in COMPARISONS:
        return [first]
    if first in RECIPES:
        return [first]
    return ["demo"] if first == "RECIPE" or "$" in first else []


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=line[:40]) for line in commands() if not line.startswith("infra.")]
)
def test_every_flag_of_a_documented_command_is_in_its_help(line: str) -> None:
    module, *arguments = shlex.split(re.sub(r"[()<>|;&].*", "", line))
    module = module.rstrip(",.:")
    if module == "jobs.stack":
        return  # its verbs have no flags
    known = set(re.findall(r"--[a-z][\w.-]*", help_of(module, *first_words(module, arguments))))
    flags = [argument.partition("=")[0].rstrip(",.") for argument in arguments if argument.startswith("--")]
    flags = [re.sub(r"^--stages\.\d+\.", "--stages.N.", flag) for flag in flags]
    assert {*flags} - known - {"--help", "--help-all"} == set(), commands()[line]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_and_make_targets_exist(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / link).exists(), link
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"^    make ([a-z0-9-]+)", text, re.MULTILINE):
        assert target in targets, target
    for name in re.findall(r"`((?:infra|jobs|pipeline|datasets|model|tests)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name

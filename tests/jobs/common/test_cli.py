from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from infra.cluster.code_package import ROOT
from jobs.common.cli import UsageError, parse_recipe
from jobs.recipes.solar_cells import demo
from pipeline.config import TrainConfig
from pipeline.run.provenance import differences
from pipeline.schedule.stages import AUTO


@dataclass(frozen=True)
class Flags:
    json: bool = False
    """Print JSON."""


def parse(*argv: str) -> TrainConfig:
    return parse_recipe(argv, prog="train")[0]


def test_a_recipe_without_flags_is_the_recipe() -> None:
    assert parse("demo") == demo()


def test_flags_change_their_fields_only() -> None:
    from pipeline.run.provenance import config_values

    changed = parse("demo", "--stages.1.image-size", "88", "--optimizer.lr", "0.5", "--name", "other")
    assert differences(config_values(demo()), config_values(changed)) == {
        "name": ("demo", "other"),
        "stages.1.image_size": (80, 88),
        "optimizer.lr": (0.004, 0.5),
    }


@pytest.mark.parametrize(
    "argv", [("--stages.0.batch-size", "auto"), ("--stages.0.batch_size=auto",), ("--stages.0.batch-size", "0")]
)
def test_a_stages_batch_size_may_be_automatic(argv: tuple[str, ...]) -> None:
    stages = parse("demo", *argv).stages
    assert [stage.batch_size for stage in stages] == [AUTO, 48, 48, 48]


def test_flags_of_the_job_itself_are_kept_apart() -> None:
    config, flags = parse_recipe(["demo", "--json", "--seed", "3"], prog="plan", extra=Flags)
    assert config.seed == 3
    assert flags == Flags(json=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demmo"], r"no recipe is named 'demmo': did you mean demo\?"),
        (["demo", "--optimizer.lrr", "1"], r"--optimizer\.lrr.*did you mean --optimizer\.lr\?"),
        (["demo", "--seed", "one"], r"^--seed: 'one' is not an integer$"),
        (["demo", "--optimizer.lr", "x"], r"^--optimizer\.lr: 'x' is not a number$"),
        (["demo", "--name", "a/" + "b" * 200], "name is 'a/b{200}'"),  # not folded
        (["demo", "--model-rows"], "--model-rows: it needs a value"),
        (["demo", "--model-rows", "/nothing.json"], "/nothing.json: it does not exist"),
        (["demo", "--stages.0.dropout", "2"], r"stages\.0: stage\.dropout is 2\.0"),
        (["demo", "--name", "a/b"], "name is 'a/b'"),
        (["demo", "--name", "."], "name is '.': .*not dots alone"),
        (["demo", "--name", ".."], "name is '..'"),
        (["demo", "--stages.0.image-size", "auto"], r"'auto' is not an integer"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_said_does_not_depend_on_the_terminal(encoding: str) -> None:
    command = [sys.executable, "-m", "jobs.plan", "demo", "--optimizer.lrr", "1"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "40"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: Unrecognized options: --optimizer.lrr, 1 (did you mean --optimizer.lr?)\n"


def test_help_tells_each_field_and_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse("demo", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--stages.0.image-size" in shown
    assert "in pixels" in shown

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest

from infra.cluster.code_package import ROOT
from jobs import compare, index, plan, prepare, search, status, submit, sweep
from jobs.common.cli import parse_recipe, recipe_words, run_main
from jobs.common.parsing import UsageError
from jobs.recipes.solar_cells import demo_scratch
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
    assert parse("demo_scratch") == demo_scratch()


def test_flags_change_their_fields_only() -> None:
    from pipeline.run.provenance import config_values

    changed = parse("demo_scratch", "--stages.1.image-size", "88", "--optimizer.lr", "0.5", "--name", "other")
    assert differences(config_values(demo_scratch()), config_values(changed)) == {
        "name": ("demo-scratch", "other"),
        "stages.1.image_size": (80, 88),
        "optimizer.lr": (0.004, 0.5),
    }


@pytest.mark.parametrize(
    "argv", [("--stages.0.batch-size", "auto"), ("--stages.0.batch_size=auto",), ("--stages.0.batch-size", "0")]
)
def test_a_stages_batch_size_may_be_automatic(argv: tuple[str, ...]) -> None:
    stages = parse("demo_scratch", *argv).stages
    assert [stage.batch_size for stage in stages] == [AUTO, 48, 48, 48]


def test_flags_of_the_job_itself_are_kept_apart() -> None:
    config, flags = parse_recipe(["demo_scratch", "--json", "--seed", "3"], prog="plan", extra=Flags)
    assert config.seed == 3
    assert flags == Flags(json=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demmo"], r"no recipe is named 'demmo': did you mean demo\?"),
        (["demo_scratch", "--optimizer.lrr", "1"], r"--optimizer\.lrr.*did you mean --optimizer\.lr\?"),
        (["demo_scratch", "--seed", "one"], r"^--seed: 'one' is not an integer$"),
        (["demo_scratch", "--optimizer.lr", "x"], r"^--optimizer\.lr: 'x' is not a number$"),
        (["demo_scratch", "--name", "a/" + "b" * 200], "name is 'a/b{200}'"),  # not folded
        (["demo_scratch", "--optimizer.learning-rate", "1"], r"did you mean --optimizer\.lr\?"),
        (["demo_scratch", "--optimizer.learning_rate=1"], r"did you mean --optimizer\.lr\?"),
        (
            ["demo_scratch", "--optimizer.lrr", "-1", "--wholly=2"],
            r"^Unrecognized options: --optimizer.lrr, --wholly \(",
        ),
        (["demo_scratch", "--seed", "1", "2"], r"^Unexpected arguments: 2 \(train demo_scratch --help explains it\)$"),
        (["demo_scratch", "--dta", "x"], r"^Unrecognized options: --dta \(did you mean --data\?\)$"),
        (["demo_scratch", "--model-row", "x"], r"did you mean --model-rows\?"),
        (["demo_scratch", "--weight-decay", "1"], r"did you mean --optimizer\.weight-decay\?"),
        (["demo_scratch", "--data.crop-area", "0.5"], r"^--data\.crop-area: it takes 2 values, FLOAT FLOAT$"),
        (["demo_scratch", "--model-rows"], "--model-rows: it needs a value"),
        (["demo_scratch", "--stages.0.dropout", "2"], r"stages\.0: stage\.dropout is 2\.0"),
        (["demo_scratch", "--name", "a/b"], "name is 'a/b'"),
        (["demo_scratch", "--name", "."], "name is '.': .*not dots alone"),
        (["demo_scratch", "--name", ".."], "name is '..'"),
        (["demo_scratch", "--stages.0.image-size", "auto"], r"'auto' is not an integer"),
        (
            ["demo_scratch", "--stages.7.image-size", "96"],
            r"^--stages\.7\.image-size: there are 4 stages, 0 to 3; --ramp.stages 8",
        ),
        (["demo_scratch", "--ramp.stages", "1", "--stages.1.epochs=2"], r"^--stages\.1\.epochs: there is one stage, 0"),
        (["demo_scratch", "--ramp.imagesize", "1", "2"], r"did you mean --ramp\.image-size\?"),
        (["demo_scratch", "--ramp.stages", "0"], r"^--ramp\.stages is 0: it must be from 1 to 100$"),
        (["demo_scratch", "--ramp.stages", "two"], r"^--ramp\.stages: it does not accept 'two'; it takes INT$"),
        (["demo_scratch", "--task.class-weights", "rare"], r"it does not accept 'rare'; it takes \{none,auto\}\|"),
        (
            ["demo_scratch", "--wholly", "1"],
            r"^Unrecognized options: --wholly \(train demo_scratch --help-all lists them\)$",
        ),
        (["demo_scratch", "--ramp.image-size", "128"], r"^--ramp\.image-size: it takes two numbers, .*, not 128$"),
        (
            ["demo_scratch", "--ramp.image-size", "1", "2", "3"],
            r"^--ramp\.image-size: it takes two numbers, .*, not 1 2 3$",
        ),
        (["demo_scratch", "--ramp.mixup"], r"^--ramp\.mixup: it takes two numbers, .*, not none$"),
        (["demo_scratch", "--ramp.mixup", "0", "x"], r"^--ramp\.mixup: 'x' is not a number$"),
        (
            ["demo_scratch", "--ramp.image-size", "300", "128"],
            r"^--ramp\.image-size is 300 128: .*first must not be above",
        ),
        (["demo_scratch", "--ramp.image-size", "12.5", "20"], r"^--ramp\.image-size is 12\.5 20: give whole numbers"),
        (["demo_scratch", "--ramp.dropout", "0", "1"], r"^--ramp\.dropout has 1: it must be at least 0 and below 1$"),
        (["demo_scratch", "--ramp.randaugment", "-1", "1"], r"^--ramp\.randaugment has -1: it must be at least 0$"),
        (["demo_scratch", "--ramp.image-size", "64", "1000000"], r"^--ramp\.image-size is 64 1e\+06: .*8 to 16,384$"),
        (["demo_scratch", "--ramp.stages", "1000"], r"^--ramp\.stages is 1000: it must be from 1 to 100$"),
        (["demo_scratch", "--trainer.eval-scale", "1e6"], r"eval_scale is 1e\+06: a stage would be evaluated at"),
        (["demo_scratch", "--epochs", "0"], r"^--epochs is 0: it must be above 0 and at most 1,000,000$"),
        (["demo_scratch", "--epochs", "-3"], r"^--epochs is -3: it must be above 0"),
        (["demo_scratch", "--epochs", "nan"], r"^--epochs is nan: it must be above 0"),
        (["demo_scratch", "--epochs", "1e300"], r"^--epochs is 1e\+300: it must be .* at most 1,000,000$"),
        (["demo_scratch", "--ramp.size-multiple", "0"], r"^--ramp\.size-multiple is 0: it must be from 1 to 16,384$"),
        (["demo_scratch", "--batch-size", "0"], r"^--batch-size is 0: it must be at least 1$"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


def test_a_file_of_rows_that_is_not_there_or_holds_none_is_one_line(tmp_path: Path) -> None:
    for content, message in (
        (None, "it does not exist"),
        (b"\xff", "expected a JSON list of rows"),
        (b"[]", "no rows"),
    ):
        if content is not None:
            (tmp_path / "rows.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"^model-rows is {tmp_path}/rows.json: .*{message}"):
            parse("demo_scratch", "--model-rows", str(tmp_path / "rows.json"))


@pytest.mark.parametrize(
    ("job", "argv", "meant"),
    [
        (sweep, ["demo_scratch", "--max-trial", "5"], "--max-trials"),
        (search, ["demo_scratch", "--latency-check", "5"], "--latency-checks"),
        (compare, ["demo_scratch", "--varians", "x"], "--variants"),
        (submit, ["demo_scratch", "--dash-board", "x"], "--dashboard"),
        (plan, ["demo_scratch", "--sample", "5"], "--samples"),
        (index, ["data", "--worker", "5"], "--workers"),
        (status, ["--jsn"], "--json"),
        (prepare, ["image-folder", "x", "--out", "y", "--worker", "3"], "--workers"),
        (prepare, ["image-folder", "x", "--out", "y", "--val-shar", "0.1"], "--val-share"),
    ],
)
def test_a_mistyped_flag_of_any_part_of_a_command_is_known_again(job: ModuleType, argv: list[str], meant: str) -> None:
    flag = next(word for word in argv if word.startswith("--") and word != "--out")
    with pytest.raises(UsageError, match=rf"^Unrecognized options: {flag} \(did you mean {meant}\?\)$"):
        job.main(argv)


def test_a_flag_of_another_source_is_not_suggested() -> None:
    with pytest.raises(UsageError, match=r"^Unrecognized options: --text-siz \(.*--help lists them\)$"):
        prepare.main(["image-folder", "x", "--out", "y", "--text-siz", "20"])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_said_does_not_depend_on_the_terminal(encoding: str) -> None:
    command = [sys.executable, "-m", "jobs.plan", "demo_scratch", "--optimizer.lrr", "1"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "40"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: Unrecognized options: --optimizer.lrr (did you mean --optimizer.lr?)\n"


def helped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        parse(*argv)
    return capsys.readouterr().out


def fields_of(value: object, name: str = "") -> Iterator[str]:
    parts: dict[object, object] = {}
    if is_dataclass(value):
        parts = {field.name.replace("_", "-"): getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, tuple) and value and is_dataclass(value[0]):
        parts = dict(enumerate(value))
    if not parts:
        yield name
    for key, part in parts.items():
        yield from fields_of(part, f"{name}.{key}" if name else f"{key}")


def test_help_tells_a_stages_fields_once_and_the_common_ones_first(capsys: pytest.CaptureFixture[str]) -> None:
    shown = helped(capsys, "demo_scratch", "--help")
    assert "1: a square. (64, 80, 112, 128)" in " ".join(shown.split())
    flags = re.findall(r"^  (--[\w.-]+)", shown, re.MULTILINE)
    assert len(flags) == len(set(flags))
    assert [flag for flag in flags if flag.endswith("image-size")] == ["--ramp.image-size", "--stages.N.image-size"]
    assert flags[:2] == ["--data", "--name"]
    assert {"--epochs", "--batch-size", "--ramp.stages", "--optimizer.lr"} < {*flags}


def test_all_fields_are_in_the_whole_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {*re.findall(r"^  --([\w.-]+)", helped(capsys, "demo_scratch", "--help-all"), re.MULTILINE)}
    wanted = {re.sub(r"^stages\.\d", "stages.N", name) for name in fields_of(demo_scratch())} - {
        "model.rows"
    }  # a file's
    assert wanted <= shown
    common = re.findall(r"^  --([\w.-]+)", helped(capsys, "demo_scratch", "--help"), re.MULTILINE)
    assert len(common) < len(wanted) * 0.6
    assert {*common} < shown


def test_the_flags_of_a_job_come_first_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse_recipe(["demo_scratch", "--help"], prog="plan", extra=Flags)
    assert re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, re.MULTILINE)[0] == "--json"


def test_the_words_of_a_recipe_are_without_the_jobs_own_and_the_name() -> None:
    argv = ["demo_scratch", "--ramp.stages", "3", "--json", "--name", "s", "--data.train", "a b"]
    assert recipe_words(argv, Flags) == "demo_scratch --ramp.stages 3 --data.train 'a b'"


def test_a_file_that_the_system_refuses_is_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/table")

    with pytest.raises(SystemExit, match="2"):
        run_main(main)
    said = capsys.readouterr().err
    assert said == "error: /somewhere/table: Permission denied; change its owner or mode, or name another place\n"

"""Every command in the documents has its account: it is run here, or by a test that is named here and does what it
does, though maybe not by the same letters, or it is marked as not run."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from jobs.common import compare_args as compare_cli
from tests.support.documented import ROOT, documented
from tests.support.runs import TrainedRun
from tests.support.shards import image_of


@dataclass(frozen=True)
class Here:
    """Run by this test, in a folder that has what the documents speak of, only smaller."""

    says: str
    """What it prints."""
    more: str = ""
    """Further arguments, which make it short."""


@dataclass(frozen=True)
class By:
    """Run by another test."""

    test: str
    """FILE::FUNCTION; FILE alone: its helpers start the command for several tests."""
    words: str
    """What stands there, by which it is known that the command is run there."""


@dataclass(frozen=True)
class Marked:
    """Not run; the document says so: beside the command (`# cloud`), or in a comment that names it."""

    name: str = ""


RAY_UP = "tests/infra/cluster/test_ray_up.py"
OPERATIONS = "tests/jobs/test_operations.py"
CONTROL = "tests/jobs/test_live_control.py"
SWEEP = "tests/jobs/test_sweep.py::test_a_stopped_and_killed_sweep_goes_on_and_repeats_nothing_that_is_finished"
TRAIN = By("tests/jobs/test_train.py", '"jobs.train", "demo"')
SEARCH = By(
    "tests/jobs/test_search.py::test_a_killed_search_goes_on_and_measures_and_trains_nothing_twice", "jobs.search"
)
BUCKET = By("tests/datasets/files/test_s3.py", "index([")

ACCOUNTS: dict[str, Here | By | Marked] = {
    # Data.
    r"jobs\.prepare image-folder PATH --out data/\S+( --also-short-side 256,160)?": Here("12 images of 2 classes"),
    r"jobs\.prepare image-folder PATH --out s3:.*": By(
        "tests/jobs/test_prepare.py::test_smaller_copies_and_s3", "s3_uri"
    ),
    r"jobs\.prepare fonts --out data/fonts": Here(
        "images of 3 classes", "--families 3 --train-images 4 --val-images 2"
    ),
    r"jobs\.prepare fonts --families 8 .*": Here("images of 8 classes", "--train-images 3 --val-images 2"),
    r"jobs\.prepare fonts --families 16 .*": Here("images of 16 classes", "--train-images 2 --val-images 1"),
    r"jobs\.prepare elpv .*": By("tests/jobs/test_prepare.py::test_elpv_is_written_with_its_licence", "elpv"),
    r"jobs\.prepare bluemarble .*": By("tests/datasets/prepare/sources/test_bluemarble.py", "blue"),
    r"jobs\.index (URL|data/theirs)": Here("images of 4 classes in"),
    r"jobs\.index \"data/theirs/\{a-0,b-0\}.*": Here("images of 4 classes in"),
    r"jobs\.index s3:.*": BUCKET,
    r"jobs\.pyramid data/mine/train .*": Here("copies of short side 160, 256"),
    # Plans, help and lists.
    r"jobs\.plan RECIPE": Here("demo"),
    r"jobs\.plan": Here("usage", "--help"),
    r"jobs\.plan demo --data.train data/mine/train .*": Here("mine"),
    r"jobs\.plan efficientnetv2_s_paper .*": By("tests/jobs/test_plan.py::test_the_papers_settings", "_paper"),
    r"jobs\.train( demo)? --help": Here("usage"),
    r"jobs\.models": By("tests/jobs/test_models.py::test_json_and_table_tell_the_same", "main("),
    r"jobs\.models --check-logits": By("tests/jobs/test_models.py::test_logits_are_the_libraries", "--check-logits"),
    r"jobs\.weights .*": By("tests/jobs/test_weights.py", "weights.main("),
    # A run that was trained.
    r"jobs\.checkpoints (NAME|RUN) (\[?--verify\]?)": Here("whole"),
    r"jobs\.checkpoints RUN --storage s3:.*": By(
        "tests/jobs/test_checkpoints.py", '"--storage", str(tmp_path), "--verify"'
    ),
    r"jobs\.evaluate (NAME --data URL|demo --data data/elpv/val --pictures pics)": Here("accuracy"),
    r"jobs\.export demo --to.*": Here("its logits on 8 real images are those of"),
    r"jobs\.export NAME --to.*": By("tests/jobs/conftest.py", "main([str(run.folder)"),
    r"jobs\.predict (MODEL IMAGE\.\.\.|cells.onnx cells)": Here("probability"),
    r"jobs\.predict climate.onnx .*": By(
        "tests/jobs/test_predict.py::test_a_mask_has_the_images_size_and_the_classes_colours", "masks"
    ),
    # Training, sweeps, search.
    r"jobs\.train demo .*data/mine/train.*": TRAIN,
    r"jobs\.train demo .*--data.train-weights.*": By("tests/datasets/shards/test_foreign.py", "train_weights"),
    r"jobs\.train unet_demo": Marked("unet_demo"),
    r"jobs\.train elpv_\$recipe .*": Marked("elpv_"),
    r"jobs\.train fonts_small .*--model-rows.*": By(SEARCH.test, "--model-rows"),
    r"jobs\.sweep fonts_small --dry-run": By(
        "tests/jobs/test_sweep.py::test_a_dry_run_prints_the_tree_and_writes_nothing", "--dry-run"
    ),
    r"jobs\.sweep.*": By(SWEEP, "jobs.sweep"),
    r"jobs\.search.*": SEARCH,
    r"jobs\.compare .*": By("tests/jobs/test_compare.py", "jobs.compare"),
    # A cluster.
    r"jobs\.status.*": By(CONTROL, '"jobs.status", "live", "--watch"'),
    r"jobs\.control.*": By(CONTROL, "jobs.control"),
    r"jobs\.submit.*": By(
        f"{OPERATIONS}::test_a_job_is_stopped_by_ctrl_c_and_by_ray_with_a_checkpoint_and_resumed", 'start("submit"'
    ),
    r"jobs\.doctor.*": By(f"{OPERATIONS}::test_the_doctor_finds_all_well_or_says_what_is_not", 'start("doctor"'),
    r"infra\.mlflow_serve": By("tests/infra/tracking/test_mlflow_team.py", "infra.mlflow_serve"),
    # Measurements.
    r"jobs\.benchmark chaos": By("tests/chaos/test_chaos.py", "jobs.benchmark"),
    r"jobs\.benchmark model": By("tests/jobs/benchmark/test_model.py::test_json_is_what_was_measured", "main("),
    r"jobs\.benchmark scaling.*": By("tests/jobs/benchmark/test_scaling.py", "main("),
    r"jobs\.benchmark (checkpoint|controller|loader|memory|overhead|recovery|stages).*": Marked("jobs.benchmark"),
    # make, ray, mlflow.
    r"make demo": Marked("make demo"),
    r"make ui": Marked("make ui"),
    r"make (up|down|demo-s3)": By(f"{OPERATIONS}", "stack.up()"),
    r"make (test|lint)": By(".ci/run", "step make test"),
    r"make test-fast": Marked("make test-fast"),
    r"ray job (submit|list).*": By(f"{OPERATIONS}::test_rays_own_commands_submit_and_list_jobs", '"job", "submit"'),
    r"ray job stop JOB": By(
        f"{OPERATIONS}::test_a_job_is_stopped_by_ctrl_c_and_by_ray_with_a_checkpoint_and_resumed", "stopped_by_ray("
    ),
    r"ray up.*": By(RAY_UP, '"up"'),
    r"ray down .*": By(RAY_UP, '"down"'),
    r"ray dashboard .*": By(RAY_UP, "dashboard {config}"),
    r"(RAY_AUTH_MODE=token )?ray start.*": By(RAY_UP, "ray start"),
    r"ray get-auth-token .*": Marked("ray get-auth-token"),
    r"ray drain-node .*": By("tests/pipeline/run/test_ray_policies.py", "nodes.drain("),
}

COMMANDS = documented()
WORDS = {
    "RECIPE": "demo",
    "NAME": "demo",
    "RUN": "demo",
    "URL": "data/mine/train",
    "MODEL": "runs/demo",
    "IMAGE...": "cells",
}


def account(command: str) -> Here | By | Marked | None:
    """The first one whose pattern is the whole command, without `python -m`."""
    line = re.sub(r"^python3? -m ", "", command)
    return next((account for pattern, account in ACCOUNTS.items() if re.fullmatch(pattern, line)), None)


@pytest.fixture(scope="module")
def place(trained_classifier: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the images, shards and the run that the documents name."""
    place = tmp_path_factory.mktemp("documented")
    for split, count in ("train", 12), ("val", 4):
        for number in range(count):
            path = place / "PATH" / split / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_of(number % 2, number, height=320, width=400)).save(path)
    (place / "runs").mkdir()
    (place / "runs" / "demo").symlink_to(trained_classifier.folder)
    for name in ("elpv", "mine", "more", "theirs"):
        shutil.copytree(trained_classifier.data, place / "data" / name)
    for name, path in zip("ab", sorted((place / "data" / "theirs" / "train").glob("*.tar")), strict=True):
        path.rename(place / "data" / "theirs" / f"{name}-0.tar")
    for path in (place / "data" / "more" / "val").glob("*.tar"):
        path.rename(place / "data" / "more" / path.name)
    (place / "data" / "classes.json").write_text(json.dumps(["a", "b", "c", "d"]))
    shutil.copytree(place / "PATH" / "val" / "cat", place / "cells")
    return place


@pytest.mark.parametrize("command", [pytest.param(command, id=command[:60]) for command in COMMANDS])
def test_a_documented_command_is_run_or_marked(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    match account(command):
        case None:
            pytest.fail(f"`{command}` in {COMMANDS[command]}: say in ACCOUNTS how it is run, or mark it as not run")
        case By(test, words):
            file, _, function = test.partition("::")
            source = (ROOT / file).read_text()
            if function:
                start = source.index(f"def {function}(")
                source = re.split(r"^(?:@|def |class )", source[start + 4 :], maxsplit=1, flags=re.MULTILINE)[0]
            assert words in source, test
        case Marked(name):
            for path in COMMANDS[command]:
                assert re.search(f"{re.escape(command)} +# cloud|<!-- not run by tests: [^>]*{name}", path.read_text())
        case Here(says, more):
            monkeypatch.chdir(place)
            assert says in run(command, more, capsys)


def run(command: str, more: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the verb in this process, and return what it said."""
    _, _, module, *arguments = shlex.split(command)
    if module == "jobs.prepare":  # what is there already is other data
        arguments = [re.sub("^data/mine", f"data/made-{len(command)}", word) for word in arguments]
    arguments = [WORDS.get(word, word) for word in (word.strip("[]") for word in arguments)] + shlex.split(more)
    main = importlib.import_module(f"{module}.__main__" if module == "jobs.benchmark" else module).main
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code in (0, None), said.out + said.err
    return said.out


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"jobs\.compare .*\w$", command)])
def test_a_documented_comparison_can_be_asked_for(command: str) -> None:
    _, _, _, *arguments = shlex.split(command)
    comparison, options = compare_cli.parse([WORDS.get(word, word) for word in arguments])
    assert len(comparison.variants) > 1
    assert comparison.baseline in comparison.variants
    if "--seeds" in arguments:
        assert str(options.seeds[0]) == arguments[arguments.index("--seeds") + 1]


def test_no_account_is_left_over() -> None:
    lines = [re.sub(r"^python3? -m ", "", command) for command in COMMANDS]
    assert [pattern for pattern in ACCOUNTS if not any(re.fullmatch(pattern, line) for line in lines)] == []

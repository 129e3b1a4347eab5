from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from datasets.errors import DataError
from jobs import compare, plan, train
from jobs.common.cli import run_main
from jobs.common.facts import written
from jobs.common.parsing import UsageError
from jobs.recipes.catalog import RECIPES
from jobs.recipes.generic import GENERIC, TYPICAL
from tests.support.shards import image_of, png, write_rare_shards, write_samples, write_shards

PAPER = {  # arXiv 2104.00298, table 6: image size, RandAugment, Mixup, dropout, each from its first to its last stage
    "s": ((128, 300), (5, 15), (0, 0), (0.1, 0.3)),
    "m": ((128, 380), (5, 20), (0, 0.2), (0.1, 0.4)),
    "l": ((128, 380), (5, 25), (0, 0.5), (0.1, 0.5)),
}


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert plan.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_data_that_train_refuses_are_refused(tmp_path: Path) -> None:
    def sample(number: int) -> dict[str, object]:
        return {"png": png(image_of(1, number)), "targets": b"0.1"}

    for split in ("train", "val"):
        write_samples(tmp_path / split, [48], sample, classes=["weight"], kind="regression")
    with pytest.raises(DataError, match=r"the target 'weight' is always 0\.1: nothing to learn"):
        plan.main(["regress", "--data", str(tmp_path)])


@pytest.mark.parametrize(
    ("recipe", "makes"),
    [("cifar10", "cifar10"), ("camvid", "camvid"), ("cifar10_progressive", "cifar10_small"), ("elpv_frozen", "demo")],
)
@pytest.mark.parametrize("job", [plan, train, compare])
def test_data_that_is_not_there_is_made_by_the_recipes_command(
    job: ModuleType,
    recipe: str,
    makes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def error(*flags: str) -> str:
        dry = ["--dry-run"] if job is compare else []
        monkeypatch.setattr(sys, "argv", ["job", recipe, *dry, *flags])
        with pytest.raises(SystemExit) as caught:
            run_main(job.main)
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "jobs.prepare" in (RECIPES[makes].__doc__ or "")
    cure = f"; `python -m jobs.train {makes} --help` has the command that makes them\n"
    assert cure in error()
    Path(RECIPES[makes]().data.train).mkdir(parents=True)  # as a command that was interrupted leaves it
    assert cure in error()
    assert "--help" not in (said := error("--data.train", str(tmp_path / "mine")))
    assert ("(or plan for --samples N)" in said) == (job is plan)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "-5"], "--samples is -5: it must be 0 or more"),
        (["--samples", "100", "--bytes-per-sample", "-4"], "--bytes-per-sample is -4: it must be 0 or more"),
        (["--samples", "3"], r"--samples is 3: fewer than data\.num_lanes=\d+; use fewer lanes"),
    ],
)
def test_numbers_of_images_that_cannot_be_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        plan.main(["fonts", *flags])


def test_a_rate_that_stays_while_the_batch_shrinks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def note(*flags: str) -> str:
        assert plan.main(["demo_scratch", "--samples", "1000", "--stages.3.batch-size", "24", *flags]) == 0
        return "".join(line for line in capsys.readouterr().out.splitlines() if "optimizer.lr" in line)

    assert note() == (
        "note: batch_size is 24 in the last stage and 48 in the recipe, and optimizer.lr stays 0.004: it is absolute; "
        "--optimizer.lr-per-batch 48 scales it linearly with the batch"
    )
    assert note("--optimizer.lr-per-batch", "48") == note("--optimizer.lr", "0.002") == ""


def test_a_rate_for_a_batch_takes_the_place_of_the_rule_for_automatic_ones(capsys: pytest.CaptureFixture[str]) -> None:
    automatic = ("demo_scratch", "--samples", "1000", "--stages.0.batch-size", "auto")
    by_rule = planned(capsys, *automatic)["stages"][0]
    scaled = planned(capsys, *automatic, "--optimizer.lr-per-batch", "48")["stages"][0]
    assert (by_rule["batch_size"], by_rule["lr_factor"]) == (192, 2.0)
    assert (scaled["batch_size"], scaled["lr_factor"]) == (192, 1.0)
    assert scaled["lr_end"] == pytest.approx(2 * by_rule["lr_end"])


@pytest.mark.parametrize("size", list(PAPER))
def test_the_papers_settings(capsys: pytest.CaptureFixture[str], size: str) -> None:
    found = planned(capsys, f"efficientnetv2_{size}_paper")
    stages = found["stages"]
    assert found["randaugment_policy"] == "google"  # the paper's runs were the authors' code's too
    sizes, magnitude, mixup, dropout = PAPER[size]
    assert len(stages) == 4
    for name, (first, last) in {
        "image_size": sizes,
        "randaugment_magnitude": magnitude,
        "mixup_alpha": mixup,
        "dropout": dropout,
    }.items():
        values = [stage[name] for stage in stages]
        assert (values[0], values[-1]) == pytest.approx((first, last))
        steps = [after - before for before, after in pairwise(values)]
        assert steps == pytest.approx([steps[0]] * 3, abs=1)  # linear; sizes are whole pixels
    assert sum(stage["epochs"] for stage in stages) == 350
    assert {stage["batch_size"] for stage in stages} == {4096}
    assert stages[-1]["eval_size"] == (384 if size == "s" else 480)


@pytest.mark.parametrize(
    ("size", "sizes"), [("s", [171, 214, 257, 300]), ("m", [192, 256, 320, 384]), ("l", [192, 256, 320, 384])]
)
def test_the_released_codes_settings(capsys: pytest.CaptureFixture[str], size: str, sizes: list[int]) -> None:
    found = planned(capsys, f"efficientnetv2_{size}_google")
    stages = found["stages"]
    assert found["randaugment_policy"] == "google"
    assert [stage["image_size"] for stage in stages] == sizes
    assert {stage["dropout"] for stage in stages} == {{"s": 0.2, "m": 0.3, "l": 0.4}[size]}
    assert stages[-1]["randaugment_magnitude"] == {"s": 10, "m": 15, "l": 20}[size]
    last = {"s": 0, "m": 0.2, "l": 0.5}[size]
    for name in ("mixup_alpha", "cutmix_alpha"):
        assert [stage[name] for stage in stages] == pytest.approx([last * index / 3 for index in range(4)])


def test_options_of_the_inputs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "demo_scratch",
        "--samples",
        "2000",
        "--stages.0.low-frequency-of",
        "128",
        "--stages.3.random-sizes",
        "64",
        "80",
    ]
    flags += ["--stages.3.random-size-share", "0.25", "--data.flip-order", "alternating"]
    assert plan.main(flags) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "low frequencies of 128 px",
        "25% of the steps at 64, 80 px",
        "policy: torchvision; flips: alternating",
    ):
        assert text in shown
    last = planned(capsys, *flags)["stages"][3]
    assert last["megapixels"] == pytest.approx(last["samples"] * (0.75 * 128**2 + 0.25 * (64**2 + 80**2) / 2) / 1e6)


@pytest.mark.parametrize("recipe", GENERIC)
def test_nothing_is_said_of_what_is_off(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [recipe, "--samples", "2000", "--facts", written(TYPICAL)]
    off = ["--ramp.randaugment", "0", "0", "--ramp.mixup", "0", "0", "--ramp.dropout", "0", "0", "--data.flip", "False"]
    found = planned(capsys, *argv)
    stages, choices = found["stages"], found["choices"]
    assert plan.main(argv) == 0
    shown = capsys.readouterr().out
    augments = any(stage["randaugment_magnitude"] for stage in stages)
    assert ("RandAugment's policy" in shown) == ("RandAugment" in choices["regularization"][0]) == augments
    assert planned(capsys, *argv, *off)["choices"]["regularization"][0] == "none"
    assert plan.main([*argv, *off]) == 0
    shown = capsys.readouterr().out
    for word in ("RandAugment", "Mixup 0", "dropout 0"):
        assert word not in shown
    assert "flips: off" in shown


def test_steps_samples_and_bytes_add_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "train", [50, 64, 23])
    result = planned(capsys, "demo_scratch", "--data.train", str(folder))
    assert result["data"]["samples"] == 137
    assert result["data"]["samples_per_epoch"] == 132
    for stage in result["stages"]:
        assert stage["samples"] == stage["steps"] * stage["batch_size"]
        assert stage["samples"] == pytest.approx(stage["epochs"] * 132, abs=stage["batch_size"])
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert result["total"]["bytes_read"] == pytest.approx(result["total"]["samples"] * size / 137, rel=1e-3)
    mix = f"{folder}/part-000000.tar::{folder}/part-000001.tar"
    result = planned(capsys, "demo_scratch", "--data.train", mix, "--data.train-weights", "0.5", "2")
    assert result["data"]["samples"] == 25 + 128


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_can_be_planned(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    facts = ["--facts", "samples=100000,classes=10,short-side=300"] if recipe in GENERIC else []
    assert plan.main([recipe, "--samples", "100000", "--bytes-per-sample", "120000", *facts]) == 0
    shown = capsys.readouterr().out
    assert RECIPES[recipe]().name in shown
    assert "100,000 images" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages.0.image-size", "12"], "image_size=12"),
        (["--stages.0.batch-size", "50"], "50 is not a multiple"),
        (["--cluster.num-workers", "5"], "5 workers"),
        (["--model.name", "efficientnet_v2_t"], "efficientnet_v2_s"),
    ],
)
def test_what_cannot_work_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.main(["demo_scratch", "--samples", "1000", *flags])


def test_the_difference_of_paper_and_google_is_what_the_two_sources_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--diff", "efficientnetv2_s_paper", "efficientnetv2_s_google", "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)
    assert changes["stages.0.image_size"] == {"a": 128, "b": 171}
    assert changes["stages.3.randaugment_magnitude"] == {"a": 15, "b": 10}
    assert changes["model.norm_momentum"] == {"a": 0.01, "b": 0.1}
    assert not any(field.startswith(("optimizer", "data", "task")) for field in changes)
    assert plan.main(["--diff", "efficientnetv2_s_paper", "efficientnetv2_s_google"]) == 0
    shown = capsys.readouterr().out
    assert "stages.0.image_size" in shown
    assert f"{len(changes)} fields differ" in shown


def test_diff_wants_two_recipes() -> None:
    for names, message in ((["demo_scratch"], "two recipes, not 1"), (["demo_scratch", "demmo"], "did you mean demo")):
        with pytest.raises(UsageError, match=message):
            plan.main(["--diff", *names])


def test_transfer_and_scratch_take_the_same_steps(capsys: pytest.CaptureFixture[str]) -> None:
    scratch, transfer, frozen = (
        planned(capsys, f"elpv_{name}", "--samples", "1968") for name in ("scratch", "transfer", "frozen")
    )
    rates = {"lr_start", "lr_end", "stochastic_depth"}  # the frozen one drops no blocks
    for other in (transfer, frozen):
        for one, row in zip(scratch["stages"], other["stages"], strict=True):
            assert {key: value for key, value in row.items() if key not in rates} == {
                key: value for key, value in one.items() if key not in rates
            }
    assert transfer["model"] == scratch["model"] == "efficientnet_lite0"
    assert scratch["stages"][-1]["lr_end"] < 1e-4 * RECIPES["elpv_scratch"]().optimizer.lr  # a cosine to the end


def test_the_transfer_recipes_are_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("elpv_transfer", "elpv_frozen"):
        config = RECIPES[name]()
        assert config.model.init_from
        assert (config.optimizer.schedule, config.optimizer.weight_decay) == ("cosine", 0)
    assert RECIPES["elpv_frozen"]().model.frozen
    assert RECIPES["elpv_scratch"]().model.init_from is None


def test_weights_and_sampling_of_classes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_rare_shards(tmp_path / "train", [80]))
    flags = ("--data.train", folder, "--data.val", folder)
    found = planned(capsys, "demo_scratch", *flags, "--task.class-weights", "auto")["data"]["report"]
    assert found == ["task.class_weights: rarest 13.33, rare 3.333, usual 0.381"]
    found = planned(capsys, "demo_scratch", *flags, "--data.sampling", "balanced")["data"]["report"]
    assert found[0] == "data.sampling balanced: what an epoch takes"
    assert found[1] == "  rarest: 2.50% of the images, 32.50% of an epoch, each image 13 times"
    assert planned(capsys, "demo_scratch", *flags)["data"]["report"] == []
    with pytest.raises(ValueError, match=r"task.class_weights has 2 numbers for 3 classes"):
        plan.main(["demo_scratch", *flags, "--task.class-weights", "1", "2"])
    with pytest.raises(UsageError, match="'some' is not one of uniform, balanced, sqrt"):
        plan.main(["demo_scratch", *flags, "--data.sampling", "some"])

"""`jobs.compare`: the ready-made comparisons' variants, and a small one as a user runs it, twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.errors import MissingDataError
from infra.storage.open import open_storage
from jobs.common.compare_args import parse
from jobs.common.parsing import UsageError
from jobs.common.schedule_flags import scaled
from jobs.compare import _Compare, _millions, main
from jobs.recipes.catalog import RECIPES
from jobs.recipes.comparisons import COMPARISONS, DATAS_CROPS, random_sizes, with_fused
from jobs.recipes.earth import unet_demo
from jobs.recipes.fonts import fonts_progressive, fonts_small
from jobs.recipes.generic import GENERIC
from jobs.recipes.photographs import cifar10_progressive
from jobs.recipes.solar_cells import elpv_frozen, elpv_scratch, elpv_transfer
from model.checks import check_image_size, check_model
from model.config import architecture_of
from pipeline.compare.config import CompareError
from pipeline.config import TrainConfig
from pipeline.schedule.stages import AUTO, AdaptiveConfig
from pipeline.training_config import TrainerConfig
from tests.support import peer_script
from tests.support.shards import write_shards


def two_sizes(config: TrainConfig) -> TrainConfig:
    pairs = zip(config.stages, (64, 64, 96, 96), strict=True)
    return replace(config, stages=tuple(replace(stage, image_size=size) for stage, size in pairs))


def sizes(config) -> list[int]:  # type: ignore[no-untyped-def]
    return [stage.image_size for stage in config.stages]


def test_progressive_and_fixed_differ_in_sizes_and_regularization_alone() -> None:
    base = fonts_small()
    found = COMPARISONS["progressive-vs-fixed"](base).variants
    assert found["progressive"] == base
    assert sizes(found["fixed"]) == [56] * 4
    assert {stage.randaugment_magnitude for stage in found["fixed"].stages} == {6}
    only = found["progressive sizes only"]
    assert sizes(only) == sizes(base)
    assert {(stage.mixup_alpha, stage.dropout) for stage in only.stages} == {(0.1, 0.2)}
    for name, config in found.items():
        assert replace(config, stages=base.stages) == base
        assert sum(stage.epochs for stage in config.stages) == 4 or name == "progressive longer"


def test_a_longer_progressive_run_costs_as_many_pixels_as_the_fixed_one_in_the_recipes_proportions() -> None:
    def pixels(config: TrainConfig) -> float:
        return sum(stage.epochs * stage.image_size**2 for stage in config.stages)

    base = fonts_progressive()
    found = COMPARISONS["progressive-vs-fixed"](base).variants
    longer = found["progressive longer"]
    assert pixels(longer) == pytest.approx(pixels(found["fixed"]), rel=1e-3)
    factors = [more.epochs / stage.epochs for more, stage in zip(longer.stages, base.stages, strict=True)]
    assert factors == pytest.approx([factors[0]] * len(factors), rel=1e-2)
    assert factors[0] > 1.5
    assert sizes(longer) == sizes(base)


def test_random_sizes_are_the_recipes_and_end_at_its_last() -> None:
    stages = scaled(fonts_small(), 16).stages
    found = [stage.image_size for stage in random_sizes(stages)]
    assert sorted(found) == [32] * 4 + [40] * 4 + [48] * 4 + [56] * 4
    assert found[-1] == 56
    assert found != sorted(found)


def test_single_options_differ_from_the_recipe_in_one_thing_each() -> None:
    base = replace(scaled(fonts_small(), 20), data=replace(fonts_small().data, flip=True))
    found = COMPARISONS["single-options"](base)
    plain, crops, spectra, mixed, flips, batches, plateau, closed = found.variants.values()
    assert found.about.keys() == found.variants.keys()
    assert plain == base
    assert [stage.crop_area for stage in crops.stages] == [
        *(pytest.approx((0.7 * (size / 56) ** 2, 1.0)) for size in (32, 40, 48)),
        None,
    ]
    assert [stage.low_frequency_of for stage in spectra.stages] == [56, 56, 56, 0]
    assert [stage.random_sizes for stage in mixed.stages] == [(), (32,), (32, 40), (32, 40, 48)]
    assert [stage.random_size_share for stage in mixed.stages] == [0, 0.25, 0.25, 0.25]
    assert flips == replace(base, data=replace(base.data, flip_order="alternating"))
    assert [stage.batch_size for stage in batches.stages] == [AUTO, AUTO, AUTO, 24]
    assert plateau == replace(base, adaptive=replace(base.adaptive, plateau=True))
    assert closed == replace(base, adaptive=replace(base.adaptive, closed_loop=True))
    for config in found.variants.values():
        assert sizes(config) == sizes(base)


def test_options_that_a_recipe_cannot_have_alone_are_left_out_with_a_note() -> None:
    found = COMPARISONS["single-options"](fonts_progressive())
    assert {"alternating flips", "closed loop"}.isdisjoint(found.variants)
    flips, plateau, loop = found.notes
    assert flips.startswith("Alternating flips are left out")
    assert plateau == "Evaluations without improvement that make a plateau: 3."
    assert loop.startswith("The closed loop is left out")
    assert {stage.crop_area for stage in found.variants["none"].stages} == {None}
    assert found.variants["smaller crops"] == fonts_progressive()
    fixed = COMPARISONS["progressive-vs-fixed"](found.variants["random sizes"]).variants["fixed"]
    assert {stage.image_sizes for stage in fixed.stages} == {(128,)}
    assert "larger early batches" not in COMPARISONS["single-options"](cifar10_progressive()).variants
    whole = replace(fonts_small(), data=replace(fonts_small().data, crop_area=(1.0, 1.0)))  # as for numbers
    assert "smaller crops" not in COMPARISONS["single-options"](whole).variants


def test_the_grid_has_every_size_with_every_magnitude() -> None:
    found = COMPARISONS["size-vs-regularization"](fonts_small())
    assert found.grid is not None
    assert len(found.variants) == 9
    stage = found.variants[found.grid.cells["2", "48"]].stages[0]
    assert (stage.image_size, stage.randaugment_magnitude) == (48, 2)
    assert found.baseline == found.grid.cells["6", "56"]
    between = [
        sizes(one)[0] for one in COMPARISONS["size-vs-regularization"](two_sizes(fonts_small())).variants.values()
    ]
    assert between[:3] == [64, 80, 96]
    shrinks = replace(fonts_small(), stages=fonts_small().stages[::-1])
    with pytest.raises(CompareError, match="has no larger images than the others"):
        COMPARISONS["size-vs-regularization"](shrinks)
    with pytest.raises(CompareError, match=r"has no RandAugment.*--stages\.2\.randaugment-magnitude"):
        COMPARISONS["size-vs-regularization"](unet_demo())


def test_fused_goes_from_none_to_all_rows() -> None:
    base = fonts_small()
    found = COMPARISONS["fused"](base).variants
    assert list(found) == ["no fused", "fused 1-2", "fused 1-3", "fused 1-4"]
    kinds = [[row.operator == "Fused-MBConv" for row in config.model.rows] for config in found.values()]
    assert [sum(kind) for kind in kinds] == [0, 2, 3, 4]
    assert found["fused 1-3"] == base  # the recipe's own rows: its run is used again
    architecture = architecture_of(base.model)
    assert architecture is not None
    assert [row.se for row in with_fused(architecture.blocks, 1)] == [0, 0.25, 0.25, 0.25]


def test_swin_is_matched_by_multiply_adds_and_takes_the_sizes() -> None:
    found = COMPARISONS["swin-vs-efficientnet"](fonts_small()).variants
    assert found["swin"].model.name == "swin_mini_24"
    assert sizes(found["swin"]) == sizes(found["efficientnet"])
    for size in sizes(found["swin"]):
        check_image_size(found["swin"].model, size)


def test_models_that_begin_with_weights_are_not_compared_with_others() -> None:
    for name in ("fused", "swin-vs-efficientnet"):
        with pytest.raises(CompareError, match=rf"^{name}: model.init_from of elpv-transfer is lite0"):
            COMPARISONS[name](elpv_transfer())
        with pytest.raises(CompareError, match=f"^{name}: model.frozen of elpv-frozen is True"):
            COMPARISONS[name](elpv_frozen())
    swin = COMPARISONS["swin-vs-efficientnet"](elpv_scratch()).variants["swin"]
    check_model(swin.model)  # same_padding is EfficientNet's alone


def test_schedulers_differ_in_their_rules_alone() -> None:
    base = scaled(fonts_small(), 20)
    found = COMPARISONS["schedulers"](base).variants
    assert found["linear"] == base
    assert len({config.adaptive for config in found.values()}) == 4
    weakest = found.pop("strength 0")
    assert weakest == replace(base, stages=weakest.stages)
    assert {(one.randaugment_magnitude, one.mixup_alpha, one.dropout) for one in weakest.stages} == {(0, 0, 0)}
    assert all(replace(config, adaptive=base.adaptive) == base for config in found.values())


@pytest.mark.parametrize("recipe", [*sorted(GENERIC), "unet_demo", "elpv_scratch"])
@pytest.mark.parametrize("comparison", ["single-options", "schedulers"])
def test_a_plateau_is_of_a_metric_that_the_task_measures(comparison: str, recipe: str) -> None:
    base = scaled(RECIPES[recipe](), 300)
    found = COMPARISONS[comparison](base).variants
    rules = [config.adaptive for config in found.values() if config.adaptive.plateau]
    assert rules
    for rule in rules:
        assert rule.metric.removeprefix("val/") in base.task.metric_names(())
        assert rule.better == base.checkpoint.best_is
    own = replace(base, adaptive=replace(base.adaptive, metric="val/loss", better="lowest"))
    asked = {config.adaptive.metric for config in COMPARISONS[comparison](own).variants.values()}
    assert asked == {"val/loss"}


def test_the_rules_are_the_users_and_variants_can_be_chosen() -> None:
    command = ["schedulers", "--epochs", "12", "--adaptive.patience", "1", "--variants", "plateau, epochs saved"]
    comparison, _ = parse(command)
    assert list(comparison.variants) == ["linear", "plateau, epochs saved"]  # the baseline is always there
    assert comparison.variants["plateau, epochs saved"].adaptive.patience == 1
    assert comparison.variants["linear"] == scaled(fonts_small(), 12)  # its run is used again
    assert comparison.notes[0] == "Evaluations without improvement that make a plateau: 1."
    grid, _ = parse(["size-vs-regularization", "--variants", "32 px, RandAugment 2"])
    assert (len(grid.variants), grid.grid) == (2, None)
    with pytest.raises(
        UsageError, match="'plateau': none is named so; there are 'linear', 'plateau, epochs passed on'"
    ):
        parse([*command[:-1], "plateau"])


def test_variants_that_can_not_differ_are_left_out_and_the_notes_say_so() -> None:
    without = COMPARISONS["schedulers"](fonts_progressive())
    assert list(without.variants) == ["linear", "plateau, epochs passed on", "plateau, epochs saved"]
    assert "no regularization of this recipe has a range" in without.notes[-1]
    short = COMPARISONS["schedulers"](scaled(fonts_small(), 16))  # four evaluations a stage, the last one at its end
    assert list(short.variants) == ["linear", "closed loop", "strength 0"]
    assert "no stage is long enough to end early. It would need 4 evaluations before its end" in short.notes[0]
    rules = AdaptiveConfig(patience=2)  # min_epochs is 1, and so long are the stages
    often = replace(fonts_small(), trainer=TrainerConfig(eval_every_epochs=0.25), adaptive=rules)
    assert list(COMPARISONS["schedulers"](often).variants) == ["linear", "closed loop", "strength 0"]
    stages = tuple(replace(stage, epochs=epochs) for stage, epochs in zip(often.stages, (1, 1, 1, 8), strict=True))
    last = COMPARISONS["schedulers"](replace(often, stages=stages))
    assert list(last.variants) == ["linear", "plateau, epochs saved", "closed loop", "strength 0"]
    assert "plateau, epochs passed on is left out: only the last stage is long enough" in " ".join(last.notes)
    with pytest.raises(CompareError, match=r"nothing in fonts-progressive can differ.*train longer \(--epochs\)"):
        COMPARISONS["schedulers"](scaled(fonts_progressive(), 2))

    alike = COMPARISONS["progressive-vs-fixed"](fonts_progressive())
    assert list(alike.variants) == ["fixed", "progressive", "progressive longer", "random sizes", DATAS_CROPS]
    assert {stage.crop_area for stage in alike.variants[DATAS_CROPS].stages} == {None}
    same = "left out: for this recipe it is the same run as progressive"
    assert f"progressive sizes only: {same}." in alike.lines
    assert COMPARISONS["progressive-vs-fixed"](fonts_small()).about.keys() == {*alike.about} - {DATAS_CROPS}
    command = ["progressive-vs-fixed", "--recipe", "fonts_progressive", "--variants"]
    assert list(parse([*command, "progressive"])[0].about) == ["fixed", "progressive"]
    with pytest.raises(UsageError, match=f"'progressive sizes only': {same}; there are 'fixed', 'progressive'"):
        parse([*command, "progressive sizes only"])


def test_endings_are_equally_long_and_differ_in_what_they_train() -> None:
    found = COMPARISONS["norms"](fonts_small()).variants
    assert {name: sizes(config) for name, config in found.items()} == {
        "plain": [32, 40, 48, 56, 56],
        "plain, unregularized": [32, 40, 48, 56, 56],
        "fixres": [32, 40, 48, 56, 56],
        "plain, larger": [32, 40, 48, 56, 72],
        "fixres, larger": [32, 40, 48, 56, 72],
    }
    for name, config in found.items():
        assert [stage.epochs for stage in config.stages] == [1, 1, 1, 0.5, 0.5]
        ending = config.stages[-1]
        assert ending.fixres == ("fixres" in name)
        assert ending.randaugment_magnitude == (0 if ending.fixres or "unregularized" in name else 6)
    for name in ("progressive-vs-fixed", "norms"):
        with pytest.raises(CompareError, match="the recipe ends with fixres"):
            COMPARISONS[name](found["fixres"])


def test_recipes_can_be_compared_and_mistakes_are_one_line() -> None:
    comparison, options = parse(["fonts_small", "demo_scratch", "--train", "/t", "--seeds", "3", "--epochs", "2"])
    assert list(comparison.variants) == ["fonts_small", "demo_scratch"]
    assert {config.data.train for config in comparison.variants.values()} == {"/t"}
    assert [sum(stage.epochs for stage in one.stages) for one in comparison.variants.values()] == [2, 2]
    assert options.seeds == (3,)
    assert parse(["fused", "--recipe", "demo_scratch"])[0].name == "demo-scratch-fused"
    with pytest.raises(UsageError, match="did you mean progressive-vs-fixed"):
        parse(["progressive-vs-fixd"])
    with pytest.raises(UsageError, match="no recipe is named 'nothing'"):
        parse(["fused", "--recipe", "nothing"])
    with pytest.raises(UsageError, match=r"^a comparison takes its recipe as --recipe fonts_small$"):
        parse(["progressive-vs-fixed", "fonts_small"])
    with pytest.raises(UsageError, match="one comparison at a time"):
        parse(["progressive-vs-fixed", "fused"])
    with pytest.raises(UsageError, match=r"named 'single-option': did you mean single-options\?"):
        parse(["single-option", "--recipe", "demo"])
    with pytest.raises(UsageError, match="--recipe is for a predefined comparison"):
        parse(["demo", "fonts_small", "--recipe=nosuch"])
    with pytest.raises(UsageError, match="give all seeds as --seeds 0 1 2"):
        parse(["fused", "--seed", "3"])
    for seeds, shown in ((["1", "1"], "1 1"), ([], "empty")):
        with pytest.raises(ValueError, match=f"^--seeds is {shown}: name at least one, and none twice"):
            parse(["fused", "--seeds", *seeds])
    with pytest.raises(ValueError, match=r"^--variants names 'no fused' twice: name each variant once$"):
        parse(["fused", "--variants", "no fused", "no fused"])
    with pytest.raises(ValueError, match=r"^--out: gs:// is not supported"):
        main(["progressive-vs-fixed", "--recipe", "fonts_small", "--out", "gs://bucket"])
    with pytest.raises(UsageError, match=r"^--target is nan: it must be a finite number$"):
        parse(["fused", "--target", "nan"])


def arguments(place: Path, tracking_uri: str, *more: str) -> list[str]:
    """Two recipes, of one stage-long step each."""
    return [
        *("fonts_small", "demo_scratch", "--storage", str(place / "runs"), "--name", "pair"),
        *("--train", str(place / "train"), "--val", str(place / "val")),
        *("--tracking.uri", tracking_uri, "--tracking.system-metrics", "False"),
        *("--cluster.num-workers", "1", "--epochs", "1", "--seeds", "0", "--data.eval-crop", "whole"),
        *more,
    ]


def test_data_that_is_not_there_and_sizes_that_do_not_fit_are_one_line(tmp_path: Path, sqlite_uri: str) -> None:
    write_shards(tmp_path / "train", [60])
    with pytest.raises(MissingDataError, match=r"^variant 'fonts_small': .*no such shard or folder"):
        main(arguments(tmp_path, sqlite_uri))
    write_shards(tmp_path / "val", [30])
    with pytest.raises(ValueError, match=r"^variant 'fonts_small': image_size=8.* 16 is the smallest"):
        main(arguments(tmp_path, sqlite_uri, "--stages.0.image-size", "8"))


def test_metrics_that_no_evaluation_gives_and_another_runs_rest_are_one_line(tmp_path: Path, sqlite_uri: str) -> None:
    write_shards(tmp_path / "train", [60])
    write_shards(tmp_path / "val", [30])
    with pytest.raises(
        ValueError,
        match=r"checkpoint\.best_metric is 'val/acc', .* there are val/accuracy, val/balanced_accuracy, val/macro_f1, "
        "val/calibration_error, val/loss; name one by --checkpoint.best-metric, and by --checkpoint.best-is whether",
    ):
        main(arguments(tmp_path, sqlite_uri, "--checkpoint.best-metric", "val/acc", "--dry-run"))
    for name in ("val/loss", "val/calibration_error"):
        with pytest.raises(
            ValueError, match=rf"best_metric is '{name}', .* is 'highest': give --checkpoint.best-is lowest"
        ):
            main(arguments(tmp_path, sqlite_uri, "--checkpoint.best-metric", name, "--dry-run"))
    with pytest.raises(CompareError, match=r"^resume_from: .*--model\.init-from"):
        main(arguments(tmp_path, sqlite_uri, "--resume-from", "/runs/x", "--dry-run"))
    plateau = ("--adaptive.plateau", "True", "--adaptive.metric", "accuracy")
    with pytest.raises(ValueError, match=r"adaptive\.metric is 'accuracy'.*; name one by --adaptive.metric, and"):
        main(arguments(tmp_path, sqlite_uri, *plateau, "--dry-run"))


def test_a_dry_run_looks_at_config_and_data_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "train", [60])
    write_shards(tmp_path / "val", [30])
    away = "http://127.0.0.1:9"
    peer = ("--peer", "timm", "--dry-run")
    assert main(arguments(tmp_path, away, *peer, "--peer-script", peer_script.__file__)) == 0
    shown = capsys.readouterr().out
    assert "timm fixed" in shown
    assert "timm progressive: timm's train.py; it reads image files" in " ".join(shown.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]
    with pytest.raises(CompareError, match=r"^peer timm: its train\.py is not in the package; `git clone"):
        main(arguments(tmp_path, away, *peer))


@pytest.mark.parametrize(("number", "shown"), [(1234.0, "0.0012 M"), (2.34e6, "2.3 M"), (1.0464e9, "1,046 M")])
def test_pixels_are_shown_with_two_digits_at_least(number: float, shown: str) -> None:
    assert _millions(number) == shown


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_comparison_ended_is_on_record_without_passwords(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: str
) -> None:
    from infra.tracking.mlflow_run import make_client

    write_shards(tmp_path / "train", [60])
    write_shards(tmp_path / "val", [30])
    seen: list[str] = []

    def fails(comparison: _Compare, *_: object) -> None:
        seen.append(comparison.command)
        raise error("it failed")

    monkeypatch.setattr(_Compare, "_histories", fails)
    monkeypatch.setattr("jobs.compare.open_storage", lambda uri, **_: open_storage(tmp_path / uri.partition("://")[0]))
    with pytest.raises(error):
        main(arguments(tmp_path, sqlite_uri, "--out", "s3://me:secret@bucket"))
    client = make_client(sqlite_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("crescendo").experiment_id])
    assert run.info.status == status
    assert "secret" not in seen[0] + run.data.params["command"]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_comparison_trains_reports_and_is_reused(
    tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra.tracking.mlflow_run import make_client

    write_shards(tmp_path / "train", [60, 60])
    write_shards(tmp_path / "val", [30])
    out = tmp_path / "out"
    peer = ("--peer", "timm", "--peer-script", peer_script.__file__)
    command = arguments(tmp_path, sqlite_uri, *peer, "--out", str(out))
    assert main(command) == 0
    first = json.loads((out / "report.json").read_text())
    assert list(first["variants"]) == ["fonts_small", "demo_scratch", "timm fixed", "timm progressive"]
    for variant in first["variants"].values():
        (run,) = variant["runs"]
        assert not run["reused"]
        assert run["evaluations"][-1]["cursor"] == run["samples"] >= 96
        assert variant["parameters"] > 0
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    capsys.readouterr()

    assert main(command) == 0
    assert "trains as" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    again = json.loads((out / "report.json").read_text())
    assert all(run["reused"] for variant in again["variants"].values() for run in variant["runs"])
    assert [one["score"] for one in again["variants"].values()] == [one["score"] for one in first["variants"].values()]

    client = make_client(sqlite_uri)
    runs = client.search_runs([client.get_experiment_by_name("crescendo").experiment_id])
    (parent,) = (run for run in runs if run.data.tags.get("kind") == "comparison")
    assert [one.path for one in client.list_artifacts(parent.info.run_id, "report") if one.path.endswith("html")]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == 4

"""A comparison's figures from made-up histories, its fingerprints, and its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.cluster.config import ClusterConfig
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.mlflow_run import FINGERPRINT_TAG
from infra.tracking.tracker import Tracker
from jobs.recipes.fonts import fonts_small
from pipeline.checkpoint.format import Snapshot, write_checkpoint
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.compare.config import Comparison, Grid
from pipeline.compare.history import (
    Evaluation,
    Figures,
    History,
    TrainedStage,
    figures,
    history_of,
    mean_curve,
    pixels_at,
    time_to,
)
from pipeline.compare.remote import on_worker
from pipeline.compare.report import Findings, report_files, short_table
from pipeline.compare.runs import Planned, SpoiltRunError, find_run, plan_runs, read_run, record_is_open
from pipeline.compare.speed import Cost, costs, measure_cost
from pipeline.config import TrainConfig
from pipeline.run.provenance import flat_values, recorded_config, run_fingerprint
from pipeline.schedule.decisions import DecisionRecord, NextStage
from pipeline.schedule.stages import REGULARIZATION
from tests.support.configs import MakeConfig

ANY_COST = Cost(1, 1, 56, 1.0)


def findings_of(
    comparison: Comparison,
    runs: dict[str, list[History]],
    target: float,
    found: dict[str, Figures],
    cost: Cost = ANY_COST,
) -> Findings:
    return Findings(
        comparison=comparison,
        command="",
        metric="val/accuracy",
        highest=True,
        target=target,
        figures=found,
        histories=runs,
        costs=dict.fromkeys(runs, cost),
        tracking="",
    )


def history(variant: str, seed: int, rows: list[tuple[float, float]], *, samples: int = 100, **more: Any) -> History:
    """Rows: (train seconds, score)."""
    return History(
        variant=variant,
        seed=seed,
        name=f"{variant}-{seed}",
        where="/runs/x",
        fingerprint="f",
        evaluations=tuple(
            Evaluation(
                cursor=samples * number // len(rows),
                score=score,
                train_s=seconds,
                cpu_s=seconds / 2,
                eval_s=1.0,
                pixels=seconds * 10,
            )
            for number, (seconds, score) in enumerate(rows, start=1)
        ),
        metrics={"val/accuracy": rows[-1][1], "val/loss": 1.0},
        samples=samples,
        peak_bytes=more.pop("peak_bytes", 5_000_000),
        machine=more.pop("machine", "m"),
        **more,
    )


HISTORIES = {
    "fixed": [history("fixed", 0, [(10, 0.4), (20, 0.6)]), history("fixed", 1, [(12, 0.6), (24, 0.8)])],
    "quick": [
        history("quick", 0, [(4, 0.5), (8, 0.9)]),
        history("quick", 1, [(4, 0.5), (8, 0.7)], peak_bytes=7_000_000),
    ],
    "weak": [history("weak", 0, [(1, 0.1), (2, 0.2)])],
}


def test_time_to_a_score_lies_on_the_line_between_two_evaluations() -> None:
    assert time_to([10, 20, 30], [0.2, 0.6, 0.7], 0.4) == pytest.approx(15)
    assert time_to([10, 20], [0.2, 0.6], 0.1) == 10  # reached at the first evaluation, or before
    assert time_to([10, 20], [0.2, 0.6], 0.61) is None
    assert time_to([10, 20, 30], [0.9, 0.5, 0.6], 0.7, highest=False) == pytest.approx(15)


def test_the_target_is_the_baselines_mean_and_ratios_are_times_over_its_own() -> None:
    target, found = figures(HISTORIES, "fixed", None)
    assert target == pytest.approx(0.7)
    fixed, quick, weak = (found[name] for name in ("fixed", "quick", "weak"))
    assert fixed.score_std == pytest.approx(0.1414, abs=1e-4)
    assert fixed.to_target["train_s"] == pytest.approx(22)  # the mean curve's end
    assert fixed.ratio["train_s"] == 1
    assert fixed.reached == 1  # 0.6 never gets there, 0.8 does
    assert quick.score == pytest.approx(0.8)
    assert quick.to_target["train_s"] == pytest.approx(4 + 4 * 2 / 3)
    assert quick.ratio["train_s"] == pytest.approx((4 + 8 / 3) / 22)
    assert quick.train_s_range == (8, 8)
    assert quick.peak_bytes == 7_000_000
    assert (weak.to_target["train_s"], weak.ratio["cpu_s"], weak.reached) == (None, None, 0)
    assert weak.score_std is None
    assert figures(HISTORIES, "fixed", 0.5)[1]["quick"].to_target["train_s"] == 4


def test_a_mean_curve_of_runs_of_other_lengths_goes_by_shares() -> None:
    runs = [history("a", 0, [(10, 0.2), (20, 0.4)]), history("a", 1, [(20, 0.4), (40, 0.8)], samples=300)]
    seconds, scores = mean_curve(runs, "train_s")
    assert seconds.tolist() == pytest.approx([15, 30])
    assert scores.tolist() == pytest.approx([0.3, 0.6])


def test_pixels_count_each_stage_at_its_size() -> None:
    starts, pixels = [0, 100, 200], [10**2, 20**2]
    assert [pixels_at(cursor, starts, pixels) for cursor in (50, 100, 150, 200)] == [5e3, 1e4, 3e4, 5e4]


def test_a_history_comes_from_a_finished_runs_state() -> None:
    row = {"stage": 0, "val/accuracy": 0.5, "train_s": 2.0, "cpu_s": 1.0, "eval_s": 0.5}
    state = TrainState(
        cursor=200,
        stage_starts=[0, 100, 200],
        stage_results=[{"peak_bytes": 7}, {"peak_bytes": 9}, {}],
        evaluations=[
            {"cursor": 100, **row},
            {"cursor": 101, **row},
            {"cursor": 200, **row, "val/accuracy": 0.75, "train_s": 5.0},
        ],
        evaluation={"cursor": 200, "val/accuracy": 0.75},
        decisions=[
            DecisionRecord(100, 0, NextStage(values={"randaugment_magnitude": 3.0})).entry(),
            DecisionRecord(200, 1, NextStage()).entry(),
        ],
    )
    off = dict.fromkeys(REGULARIZATION, 0.0)
    stages = [
        {"image_size": 10, **off, "stochastic_depth": 0.1},
        {"image_size": 20, **off, "randaugment_magnitude": 9.0, "stochastic_depth": None},
    ]
    metadata = RunMetadata(config={"stages": stages, "data": {}, "model": {"stochastic_depth": 0.2}}, machine="m")
    about = {"variant": "v", "seed": 0, "name": "n", "where": "w", "fingerprint": "f", "samples_per_epoch": 50}
    found = history_of(state, metadata, "val/accuracy", **about)
    assert (found.score, found.images_per_s, found.peak_bytes) == (0.75, 40.0, 9)
    assert found.evaluations[1].pixels == 5e4  # 101 is an epoch's end beside the stage's
    trained = [(stage.epochs, stage.regularization["randaugment_magnitude"]) for stage in found.stages]
    assert trained == [(2, 0), (2, 3)]  # what was decided, not the recipe's 9
    assert [stage.regularization["stochastic_depth"] for stage in found.stages] == [0.1, 0.2]  # the model's where none
    del state.evaluations[0]["cpu_s"]  # as older versions wrote it
    with pytest.raises(KeyError):
        history_of(state, metadata, "val/accuracy", **about)


def test_a_fingerprint_is_of_what_is_learned_and_on_what_not_of_names_and_places() -> None:
    base = fonts_small()

    def of(config: Any, train: str = "t", val: str = "v") -> str:
        return run_fingerprint(config, train=train, val=val)

    moved = replace(base, name="other", storage="s3://b/runs", data=replace(base.data, train="/elsewhere"))
    assert of(moved) == of(base) == of(recorded_config(base))
    others = [
        replace(base, seed=1),
        replace(base, cluster=replace(base.cluster, num_workers=1)),
        replace(base, optimizer=replace(base.optimizer, lr=1.0)),
        replace(base, stages=(replace(base.stages[0], num_workers=1), *base.stages[1:])),
    ]
    prints = {of(base), of(base, train="x"), of(base, val="x"), *(of(config) for config in others)}
    assert len(prints) == 7


def test_a_report_holds_every_variant_and_marks_the_best_of_a_column() -> None:
    target, found = figures(HISTORIES, "fixed", None)
    cells = {("5", "64"): "fixed", ("9", "64"): "quick", ("5", "32"): "weak", ("9", "32"): "fixed"}
    comparison = Comparison(
        name="c",
        question="Why <so>?",
        variants=dict.fromkeys(HISTORIES, fonts_small()),
        baseline="fixed",
        grid=Grid(rows="magnitude", columns="px", cells=cells),
    )
    findings = findings_of(comparison, HISTORIES, target, found, cost=Cost(1234567, 8_900_000, 56, 777.0))
    files = report_files(replace(findings, command="python -m jobs.compare c"))
    text = files["report.md"].decode()
    assert "| 9 | **0.8000 ± 0.1414** | **0.7000 ± 0.1414** |" in text
    assert "| weak | 1,234,567 | 8.9 M | 56 |" in text
    assert "never" in text
    page = files["report.html"].decode()
    assert "Why &lt;so&gt;?" in page
    assert page.count("data:image/png;base64,") == 4
    assert "<b>0.8000 ± 0.1414</b>" in page
    values = json.loads(files["report.json"])
    assert values["variants"]["quick"]["ratio"]["train_s"] == pytest.approx((4 + 8 / 3) / 22)
    assert len(values["variants"]["fixed"]["runs"]) == 2


def test_a_report_on_adaptive_rules_shows_the_stages_as_trained() -> None:
    def stage(epochs: float, magnitude: float) -> TrainedStage:
        strengths = dict.fromkeys(REGULARIZATION, 0.0)
        return TrainedStage(epochs=epochs, regularization={**strengths, "randaugment_magnitude": magnitude})

    runs = {
        "linear": [history("linear", 0, [(10, 0.4)], stages=(stage(2, 0), stage(2, 9)))],
        "closed loop": [
            history("closed loop", seed, [(10, 0.4)], stages=(stage(2, 0), stage(1 + seed, 3.0))) for seed in (0, 1)
        ],
        "timm, fixed": [history("timm, fixed", 0, [(10, 0.4)])],
    }
    base = fonts_small()
    variants = {"linear": base, "closed loop": replace(base, adaptive=replace(base.adaptive, closed_loop=True))}
    target, found = figures(runs, "linear", None)
    comparison = Comparison(name="c", question="?", variants=variants, baseline="linear")
    findings = findings_of(comparison, runs, target, found)
    assert findings.tables["Stages as trained"] == [
        ["", "epochs", "epochs of the stages", "randaugment magnitude"],
        ["linear", "4.00", "2 2", "0 9"],
        ["closed loop", "3.50", "2 1.5", "0 3"],
    ]
    plain = replace(findings, comparison=replace(findings.comparison, variants={"linear": base}))
    assert "Stages as trained" not in plain.tables


def test_a_report_on_segmentation_is_about_miou() -> None:
    runs = {
        name: [
            replace(history(name, seed, rows), metrics={"val/miou": rows[-1][1], "val/pixel_accuracy": 0.9})
            for seed in (0, 1)
        ]
        for name, rows in {"fixed": [(10.0, 0.3), (20.0, 0.5)], "quick": [(4.0, 0.4), (8.0, 0.6)]}.items()
    }
    target, found = figures(runs, "fixed", None)
    comparison = Comparison(name="c", question="?", variants=dict.fromkeys(runs, fonts_small()), baseline="fixed")
    findings = replace(findings_of(comparison, runs, target, found), metric="val/miou")
    head, fixed, quick = findings.tables["Score and time"]
    assert head[:3] == ["", "final miou", "difference"]
    assert fixed[:2] == ["fixed (baseline)", "0.5000 ± 0.0000"]
    assert quick[1:3] == ["0.6000 ± 0.0000", "+0.1000"]
    assert (quick[7], quick[8]) == ("6.0 s", "0.30")  # halfway from 0.4 to 0.6; the baseline took 20 s to 0.5
    assert short_table(findings)[0][1] == "val/miou"
    assert findings.tables["Costs"][0][-1] == "pixel_accuracy"
    files = report_files(findings)
    assert "Target: val/miou 0.5000." in files["report.md"].decode()
    assert json.loads(files["report.json"])["metric"] == "val/miou"
    assert "ccuracy and time" not in files["report.html"].decode()


def test_a_models_cost_is_counted_and_timed() -> None:
    cost = measure_cost(fonts_small(), 8)
    assert cost.image_size == 56
    assert cost.multiply_adds == pytest.approx(7.06e6, rel=0.01)
    assert cost.images_per_s > 0


def ended(
    run: Planned, *, metric: str = "val/accuracy", asked_by: str = "", name: str = "", workers: tuple[int, int] = (2, 2)
) -> None:
    """Write the last checkpoint that a run leaves, of two stages, with next to no weights."""
    row = {"stage": 0, metric: 0.5, "train_s": 2.0, "cpu_s": 1.0, "eval_s": 0.5}
    steered = DecisionRecord(24, 0, NextStage(reason="advance", asked_by=asked_by)).entry()
    ready = run.ready
    snapshot = Snapshot(
        state=TrainState(
            cursor=48,
            stage_starts=[0, 24, 48],
            stage_results=[{"peak_bytes": 7}, {"peak_bytes": 9}, {}],
            evaluations=[{"cursor": 24 * (n + 1), "workers": workers[n], **row} for n in range(2)],
            evaluation={"cursor": 48, metric: 0.5},
            decisions=[steered],
        ),
        model={"weight": torch.zeros(1)},
        ema=None,
        optimizer={"state": {}, "param_groups": []},
        metadata=RunMetadata(
            config=recorded_config(ready.config),
            data=ready.data_fingerprint,
            val=ready.val.fingerprint,
            machine="m",
        ),
    )
    write_checkpoint(open_storage(f"{ready.config.storage}/{name or ready.config.name}"), snapshot)


def test_a_run_that_can_not_stand_for_the_planned_one_is_trained_again_under_another_name(
    make_config: MakeConfig, sqlite_uri: str
) -> None:
    base = make_config(tracking=TrackingConfig(uri=sqlite_uri))
    comparison = Comparison(name="c", question="?", variants={"one": base}, baseline="one")
    (run,) = plan_runs(comparison, (0,), dry=True)
    name = run.ready.config.name
    assert find_run(run, "val/accuracy") == (None, run)

    ended(run, asked_by="me@here")
    with pytest.raises(SpoiltRunError, match=r"me@here steered it \(next_stage\)"):
        read_run(base.storage, name, run, "val/accuracy")
    found, other = find_run(run, "val/accuracy")
    assert (found, other.ready.config.name) == (None, f"{name}-2")

    ended(other, metric="val/top5_accuracy")
    with pytest.raises(SpoiltRunError, match="kept without val/accuracy"):
        read_run(base.storage, f"{name}-2", run, "val/accuracy")
    found, other = find_run(run, "val/accuracy")
    assert (found, other.ready.config.name) == (None, f"{name}-3")

    ended(other, workers=(2, 1))
    with pytest.raises(SpoiltRunError, match="1 workers trained a part of it"):
        read_run(base.storage, f"{name}-3", run, "val/accuracy")
    found, other = find_run(run, "val/accuracy")
    assert (found, other.ready.config.name) == (None, f"{name}-4")

    ended(other)
    found, _ = find_run(run, "val/accuracy")
    assert found is not None
    assert (found.name, found.score, found.reused) == (f"{name}-4", 0.5, True)


def test_a_run_of_another_name_and_place_is_found_in_mlflow_by_its_fingerprint(
    make_config: MakeConfig, sqlite_uri: str, tmp_path: Path
) -> None:
    base = make_config(tracking=TrackingConfig(uri=sqlite_uri, system_metrics=False))
    comparison = Comparison(name="c", question="?", variants={"one": base}, baseline="one")
    (run,) = plan_runs(comparison, (0,), dry=True)
    config = replace(run.ready.config, name="elsewhere", storage=str(tmp_path / "theirs"))

    def recorded(fingerprint: str, status: str, where: TrainConfig = config) -> None:
        name = f"{where.name}-{status}-{fingerprint[:4]}"
        tracker = Tracker(base.tracking, name, storage=open_storage(tmp_path / "records" / name))
        tracker.set_tags({FINGERPRINT_TAG: fingerprint})
        tracker.log_params(flat_values(recorded_config(where)))
        assert tracker.close(status, 60)

    ended(replace(run, ready=replace(run.ready, config=config)))
    recorded(run.fingerprint, "FAILED")
    recorded("0123456789", "FINISHED")
    assert find_run(run, "val/accuracy") == (None, run)
    recorded(run.fingerprint, "FINISHED")
    recorded(run.fingerprint, "FINISHED", replace(config, name="deleted"))  # newer, but not in storage any more
    found, planned = find_run(run, "val/accuracy")
    assert found is not None
    assert (found.name, found.where, found.score, found.reused) == (
        "elsewhere",
        f"{config.storage}/elsewhere",
        0.5,
        True,
    )
    assert planned == run
    other = replace(run, fingerprint="0123456789")  # what MLflow says is held against what is in storage
    assert find_run(other, "val/accuracy") == (None, other)


def test_a_run_that_was_killed_before_its_record_had_its_end_is_started_again_for_it(
    make_config: MakeConfig, sqlite_uri: str, tmp_path: Path
) -> None:
    base = make_config(tracking=TrackingConfig(uri=sqlite_uri, system_metrics=False), storage=str(tmp_path / "runs"))
    (run,) = plan_runs(Comparison(name="c", question="?", variants={"one": base}, baseline="one"), (0,), dry=True)
    config = run.ready.config
    ended(run)
    tracker = Tracker(config.tracking, config.name, storage=open_storage(f"{config.storage}/{config.name}"))
    tracker.set_tags({"stage": "2 of 2"})
    assert tracker.flush(60)
    found, planned = find_run(run, "val/accuracy")
    assert found is not None
    assert record_is_open(planned, found)
    assert not record_is_open(planned, replace(found, where=f"{config.storage}/elsewhere"))
    assert tracker.close("FINISHED", 60)
    assert not record_is_open(planned, found)


def test_a_run_that_went_on_from_another_or_with_another_config_is_not_used(make_config: MakeConfig) -> None:
    comparison = Comparison(name="c", question="?", variants={"one": make_config()}, baseline="one")
    (run,) = plan_runs(comparison, (0,), dry=True)
    config = run.ready.config
    for changed, reason in (
        (replace(config, resume_from="/other"), "it continued from /other"),
        (replace(config, seed=7), "another config"),
    ):
        ended(replace(run, ready=replace(run.ready, config=changed)), name="x")
        with pytest.raises(SpoiltRunError, match=reason):
            read_run(config.storage, "x", run, "val/accuracy")


def test_a_cost_is_of_its_classes_and_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def measured(cluster: ClusterConfig, what: str, function: Any, config: Any, num_classes: int) -> Cost:
        asked.append((num_classes, cluster.reserved_cpus))
        return Cost(1, 2, 56, float(num_classes))

    monkeypatch.setattr("pipeline.compare.speed.on_worker", measured)
    storage, base = open_storage(str(tmp_path)), fonts_small()
    larger = replace(base, cluster=replace(base.cluster, cpus_per_worker=2))
    for variants, classes in (({"a": base, "b": base}, 8), ({"a": base}, 16), ({"a": larger}, 8), ({"a": base}, 8)):
        assert costs(variants, classes, storage)["a"].images_per_s == classes
    assert asked == [(8, 1), (16, 1), (8, 2)]


@pytest.mark.usefixtures("ray_cluster")
def test_what_fails_on_a_worker_is_one_line_with_its_kind() -> None:
    with pytest.raises(RuntimeError, match=r"^the twin failed on its worker: KeyError: 'gone'$"):
        on_worker(fonts_small().cluster, "the twin", lambda values: values["gone"], {})

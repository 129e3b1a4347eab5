"""Sweeps without a cluster: space, tree of shared starts, strategies, ledger, halving."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console

from infra.cluster.config import ClusterConfig
from infra.storage.open import open_storage
from jobs.common.cli import parse_recipe, recipe_words
from jobs.common.study_report import sweep_files, winner_command
from jobs.common.trials_view import TrialsBoard
from jobs.recipes.solar_cells import demo_scratch
from jobs.recipes.sweep_spaces import SPACES, space_of
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage, ramp
from pipeline.sweep.config import SearchOptions, SweepOptions
from pipeline.sweep.confirm import comparison, confirmation
from pipeline.sweep.ledger import Ledger, Record, StudyError, read_records
from pipeline.sweep.report import importances
from pipeline.sweep.runner import StudyRunner
from pipeline.sweep.schedulers import StageAsha, survivors
from pipeline.sweep.searcher import LedgerSearcher
from pipeline.sweep.space import Range, SweepSpace, default_space
from pipeline.sweep.strategy import EvolutionStrategy, RandomStrategy, make_strategy, mutated, random_point
from pipeline.sweep.study import Study, next_record, open_ledger, planned_points
from pipeline.sweep.tree import plan_tree, prefix_config, prefix_keys, saving, shared_prefixes, stage_costs
from pipeline.task_config import RegressionConfig
from pipeline.training_config import OptimizerConfig, TrainerConfig

SPACE = {
    "a": FloatDistribution(0, 1),
    "b": IntDistribution(1, 4),
    "c": CategoricalDistribution(("x", "y")),
    "d": FloatDistribution(1e-4, 1e-1, log=True),
    "e": FloatDistribution(0, 10, step=5),
}


# Space ---------------------------------------------------------------------------------------------------------------


def test_a_point_makes_the_recipe_that_ramp_would_have_made() -> None:
    config = demo_scratch()
    space = SweepSpace(
        randaugment_end=Range(0, 20),
        dropout_start=Range(0, 0.5),
        image_size_end=Range(64, 256),
        lr=Range(1e-4, 1e-1, log=True),
    )
    got = space.apply(config, {"randaugment_end": 9.0, "dropout_start": 0.4, "image_size_end": 190.0, "lr": 0.01})
    expected = ramp(
        epochs=24,
        batch_size=48,
        image_size=(64, 192),
        randaugment_magnitude=(0, 9),
        mixup_alpha=(0, 0.1),
        dropout=(0.4, 0.2),
        size_multiple=16,
    )
    for mine, other in zip(got.stages, expected, strict=True):
        assert mine.randaugment_magnitude == pytest.approx(other.randaugment_magnitude)
        assert mine.dropout == pytest.approx(other.dropout)
        assert (mine.mixup_alpha, mine.epochs, mine.batch_size) == (other.mixup_alpha, other.epochs, other.batch_size)
    assert [stage.image_size for stage in got.stages] == [64, 112, 144, 192]
    assert got.optimizer == replace(config.optimizer, lr=0.01)
    assert replace(got, stages=config.stages, optimizer=config.optimizer) == config


def test_the_values_of_a_point_are_those_of_studies_that_were_begun_before() -> None:
    # A study resumes by its ledger, and trials share stages whose values are equal: not one bit may differ.
    def linear(first: float, last: float) -> list[float]:
        return [first + (last - first) * (index / 3) for index in range(4)]

    config = demo_scratch()
    space = SweepSpace(randaugment_end=Range(0, 20), size_multiple=16)
    point = {"randaugment_start": 0.1, "randaugment_end": 8.7, "mixup_end": 0.37, "dropout_start": 0.13}
    point |= {"image_size_start": 70.0, "image_size_end": 251.0}
    stages = space.apply(config, point).stages
    assert [stage.randaugment_magnitude for stage in stages] == linear(0.1, 8.7)
    assert [stage.mixup_alpha for stage in stages] == linear(0.0, 0.37)
    assert [stage.dropout for stage in stages] == linear(0.13, config.stages[-1].dropout)
    assert [stage.image_size for stage in stages] == [64, 128, 192, 256]  # the first and the last are rounded too
    (only,) = space.apply(replace(config, stages=config.stages[-1:]), point).stages
    assert (only.randaugment_magnitude, only.image_size) == (8.7, 256)


@pytest.mark.parametrize("recipe", [*SPACES, "unet_demo"])
def test_the_recipes_own_point_is_in_its_space_and_gives_the_recipe(recipe: str) -> None:
    from jobs.recipes.catalog import RECIPES

    config = RECIPES[recipe]()
    space = space_of(recipe, config)
    point = space.point_of(config)
    if recipe in ("demo_scratch", "unet_demo", "efficientnetv2_s_paper"):
        assert point is not None
    if point is not None:
        assert space.apply(config, point) == config


def test_a_recipe_outside_of_the_space_has_no_point() -> None:
    assert SweepSpace(dropout_end=Range(0.3, 0.5)).point_of(demo_scratch()) is None


def test_numbers_are_not_augmented_by_what_their_recipe_leaves_out() -> None:
    stage = TrainingStage(image_size=32, batch_size=24, epochs=1)
    numbers = replace(demo_scratch(), task=RegressionConfig(), stages=(stage,))
    assert set(default_space(numbers).ranges()) == {"dropout_end"}
    mixed = replace(numbers, stages=(replace(stage, mixup_alpha=0.1),))
    assert set(default_space(mixed).ranges()) == {"mixup_end", "dropout_end"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Range(1, 1), "below"),
        (lambda: Range(0, 1, log=True), "above 0"),
        (lambda: Range(0, 1, step=2), "step"),
        (lambda: SweepSpace(), "empty"),
    ],
)
def test_a_wrong_space_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# Tree ----------------------------------------------------------------------------------------------------------------


def variants(*points: dict[str, float]) -> dict[int, TrainConfig]:
    space = SweepSpace(
        randaugment_start=Range(0, 10), randaugment_end=Range(0, 20), dropout_end=Range(0, 0.5), lr=Range(1e-3, 1e-1)
    )
    return {number: space.apply(demo_scratch(), point) for number, point in enumerate(points)}


def test_trials_that_differ_in_their_ends_share_the_first_stage_alone() -> None:
    trials = variants({"randaugment_end": 4.0}, {"randaugment_end": 8.0}, {"dropout_end": 0.4})
    (root,) = plan_tree(trials, 1000)
    assert root.trials == (0, 1, 2)
    assert [child.trials for child in root.children] == [(0,), (1,), (2,)]
    shared = shared_prefixes(trials.values())
    assert shared == {root.key}


def test_other_learning_rates_or_other_starts_share_nothing() -> None:
    trials = variants({"lr": 0.01}, {"lr": 0.02}, {"randaugment_start": 5.0})
    assert len(plan_tree(trials, 1000)) == 3
    assert shared_prefixes(trials.values()) == frozenset()
    assert saving(trials, 1000).fraction == 0


def test_a_start_that_all_leave_together_is_within_a_longer_one() -> None:
    config = demo_scratch()
    last = [replace(config.stages[3], dropout=dropout) for dropout in (0.1, 0.3)]
    trials = {number: replace(config, stages=(*config.stages[:3], stage)) for number, stage in enumerate(last)}
    assert shared_prefixes(trials.values()) == {prefix_keys(trials[0])[2]}


def test_names_and_places_make_no_other_training_and_the_length_does() -> None:
    config = demo_scratch()
    keys = prefix_keys(config)
    assert prefix_keys(replace(config, name="other", storage="s3://b/elsewhere")) == keys
    longer = replace(config, stages=(*config.stages[:3], replace(config.stages[3], epochs=50)))
    assert not set(prefix_keys(longer)) & set(keys)  # a cosine ends with the run
    assert prefix_keys(prefix_config(config, 2))[:2] == keys[:2]


def test_costs_are_images_times_pixels_and_shared_ones_count_once() -> None:
    trials = variants({"randaugment_end": 4.0}, {"randaugment_end": 8.0})
    costs = stage_costs(trials[0], 1000)
    assert costs[0] == 6000 * 64**2
    found = saving(trials, 1000)
    assert found.alone == 2 * sum(costs)
    assert found.shared == 2 * sum(costs) - costs[0]


# Strategies ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_drawn_and_mutated_points_lie_in_the_space(seed: int) -> None:
    import random

    source = random.Random(seed)
    point = random_point(SPACE, source)
    for other in (point, mutated(point, SPACE, source)):
        assert set(other) == set(SPACE)
        for name, found in SPACE.items():
            assert found._contains(found.to_internal_repr(other[name]))
    assert sum(other[name] != point[name] for name in SPACE) == 1


def test_random_points_are_known_beforehand() -> None:
    first, second = RandomStrategy(SPACE, seed=1), RandomStrategy(SPACE, seed=1)
    second.tell(first.ask(), [0.5], finished=True)
    first.ask()
    assert [first.ask() for _ in range(3)] == [second.ask() for _ in range(5)][2:]
    assert RandomStrategy(SPACE, seed=2).ask() != RandomStrategy(SPACE, seed=1).ask()


@pytest.mark.parametrize("kind", ["evolution", "tpe"])
def test_a_strategy_that_learns_finds_more_than_chance(kind: str) -> None:
    space = {f"x{index}": FloatDistribution(0, 1) for index in range(4)}

    def score(point: dict[str, float]) -> float:
        return -sum((value - 0.8) ** 2 for value in point.values())

    def best(strategy_kind: str, seed: int) -> float:
        strategy = make_strategy(strategy_kind, space, seed=seed, highest=True, max_trials=60)  # type: ignore[arg-type]
        found = []
        for _ in range(60):
            point = strategy.ask()
            found.append(score(point))
            strategy.tell(point, [found[-1]], finished=True)
        return max(found)

    seeds = range(5)
    assert sum(best(kind, seed) for seed in seeds) > sum(best("random", seed) for seed in seeds)


def test_the_oldest_of_a_population_dies_however_good_it_was() -> None:
    strategy = EvolutionStrategy(SPACE, seed=0, highest=True, population=3)
    points = [strategy.ask() for _ in range(4)]
    for score, point in zip((0.9, 0.1, 0.2, 0.3), points, strict=True):
        strategy.tell(point, [score], finished=True)
    assert [score for score, _ in strategy.living] == [0.1, 0.2, 0.3]


def test_optuna_is_told_of_ended_and_failed_trials() -> None:
    strategy = make_strategy("tpe", {"a": FloatDistribution(0, 1)}, seed=0, highest=False, max_trials=9)
    asked = strategy.ask()
    strategy.tell(asked, [0.5, 0.4], finished=False)
    strategy.tell({"a": 0.25}, [0.3], finished=True)  # of an earlier submission
    strategy.tell({"a": 0.75}, [], finished=False)
    trials = strategy.study.trials  # type: ignore[attr-defined]
    assert [trial.state.name for trial in trials] == ["PRUNED", "COMPLETE", "FAIL"]
    assert trials[0].intermediate_values == {0: 0.5, 1: 0.4}
    assert strategy.study.best_params == {"a": 0.25}  # type: ignore[attr-defined]


# Schedulers ----------------------------------------------------------------------------------------------------------


def test_half_of_the_trials_survive_rounded_up() -> None:
    assert survivors({0: 0.1, 1: 0.3, 2: 0.2}, 2, highest=True) == {1, 2}
    assert survivors({0: 0.1, 1: 0.3, 2: 0.2}, 3, highest=False) == {0}
    assert survivors({3: 0.5, 1: 0.5}, 2, highest=True) == {1}


def test_asha_stops_what_is_worse_than_the_best_so_far_and_remembers_earlier_trials() -> None:
    told = []

    def scheduler(known: list[list[float]]) -> StageAsha:
        made = StageAsha(num_stages=4, eta=2, highest=True, end=told.append, known=known)
        made.on_trial_add(None, SimpleNamespace(trial_id="new"))
        return made

    def result(stage: int, value: float) -> dict[str, float]:
        return {"stage": stage, "value": value}

    trial = SimpleNamespace(trial_id="new", config={"name": "sweep-003"})
    alone = scheduler([])
    assert alone.on_trial_result(None, trial, result(1, 0.2)) == "CONTINUE"
    assert alone.ended == set()
    late = scheduler([[0.5], [0.6], [0.1]])
    for _ in range(2):  # Tune says a trial's last result again when it is over
        assert late.on_trial_result(None, trial, result(1, 0.2)) == "CONTINUE"
    assert late.ended == {"new"}
    assert told == ["sweep-003"]


@pytest.mark.parametrize("eta", [2, 4])
def test_asha_judges_at_every_stages_end_but_the_last_ones(eta: int) -> None:
    known = [[0.5, 0.6, 0.7, 0.8]] * 3
    ended = []
    for stage in range(1, 5):
        scheduler = StageAsha(num_stages=4, eta=eta, highest=True, end=lambda name: None, known=known)
        trial = SimpleNamespace(trial_id="new", config={"name": "sweep-003"})
        scheduler.on_trial_add(None, trial)
        for reached in range(1, stage + 1):
            value = 0.1 if reached == stage else 0.9
            scheduler.on_trial_result(None, trial, {"stage": reached, "value": value})
        ended.append(bool(scheduler.ended))
    assert ended == [True, True, True, False]


# Ledger and choice of trials -----------------------------------------------------------------------------------------


def make_study(folder: Path, **changes: object) -> Study:
    config = replace(demo_scratch(), name="sweep", storage=str(folder))
    space = default_space(config)
    values: dict[str, object] = {
        "kind": "sweep",
        "base": config,
        "space": space.distributions(),
        "strategy": RandomStrategy(space.distributions(), seed=0),
        "first": space.point_of(config),
        "configure": lambda point: space.apply(config, point),
        "score": lambda metrics, figures: metrics["val/accuracy"],
        "score_name": "val/accuracy",
    }
    return Study(**(values | changes))  # type: ignore[arg-type]


def test_a_ledger_comes_back_as_it_was_and_refuses_another_plan(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(str(tmp_path)))
    ledger.open({"space": "a", "seed": 0})
    ledger.add(Record(number=0, name="s-000", point={"x": 0.1 + 0.2}))
    record = Record(number=1, name="s-001", point={"x": 1 / 3}, state="failed", stages=[{"val/accuracy": 0.5}])
    ledger.add(record)
    again = Ledger(open_storage(str(tmp_path)))
    again.open({"space": "a", "seed": 0})
    assert again.records[0] == ledger.records[0]
    assert again.records[1].state == "open"  # what failed is tried again
    assert again.find({"x": 1 / 3}) is again.records[1]
    assert read_records(open_storage(str(tmp_path)))[1] == record
    with pytest.raises(StudyError, match=r"seed: 0 -> 1.*--name"):
        Ledger(open_storage(str(tmp_path))).open({"space": "a", "seed": 1})


def test_a_study_goes_on_with_what_a_run_may_change_and_not_with_other_data(tmp_path: Path) -> None:
    def opened(**changes: object) -> None:
        study = make_study(tmp_path)
        open_ledger(replace(study, base=replace(study.base, **changes)))  # type: ignore[arg-type]

    opened()
    opened(cluster=ClusterConfig(num_workers=1), trainer=TrainerConfig(log_every=3))
    for changes in ({"data": replace(demo_scratch().data, train="elsewhere")}, {"optimizer": OptimizerConfig(lr=0.5)}):
        with pytest.raises(StudyError, match=r"data\.train|optimizer\.lr"):
            opened(**changes)


def test_the_recipe_is_tried_first_and_no_point_twice(tmp_path: Path) -> None:
    told: list[object] = []

    class Stubborn(RandomStrategy):
        def ask(self) -> dict[str, object]:
            point = super().ask()
            return point if self._next % 3 == 0 else dict(study.first or {})

        def tell(self, point: object, scores: object, *, finished: bool) -> None:
            told.append(scores)

    study = make_study(tmp_path)
    study = replace(study, strategy=Stubborn(study.space, seed=0))  # type: ignore[arg-type]
    ledger = Ledger(study.storage)
    records = []
    while (record := next_record(study, ledger, 4)) is not None:
        record.state, record.stages = "finished", [{"val/accuracy": 0.7}] * 4
        records.append(record)
    assert [record.name for record in records] == ["sweep-000", "sweep-001", "sweep-002", "sweep-003"]
    assert records[0].point == study.first
    assert len({str(record.point) for record in records}) == 4
    assert told[:2] == [[0.7] * 4] * 2  # a point that is known is answered from the ledger


def test_planned_random_points_are_those_that_are_then_chosen(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    planned = planned_points(study, [], 5, RandomStrategy(study.space, seed=0))
    ledger = Ledger(study.storage)
    for _ in range(2):
        next_record(study, ledger, 5)
    resumed = make_study(tmp_path)
    assert planned_points(resumed, ledger.records, 5, RandomStrategy(study.space, seed=0)) == planned
    while next_record(resumed, ledger, 5) is not None:
        pass
    assert [record.point for record in ledger.records] == planned


def test_a_used_up_space_ends_the_study(tmp_path: Path) -> None:
    space = {"dropout_end": FloatDistribution(0.2, 0.3, step=0.1)}
    study = make_study(tmp_path, space=space, strategy=RandomStrategy(space, seed=0), first=None)
    ledger = Ledger(study.storage)
    while next_record(study, ledger, 50) is not None:
        pass
    assert len(ledger.records) == 2


# Report --------------------------------------------------------------------------------------------------------------


def finished(study: Study, count: int) -> list[Record]:
    """Trials whose score is their dropout, and nothing else."""
    strategy = RandomStrategy(study.space, seed=0)
    points = [strategy.ask() for _ in range(count)]
    return [
        Record(
            number=number,
            name=f"sweep-{number:03d}",
            point=point,
            state="finished",
            stages=[{"val/accuracy": point["dropout_end"]}] * 4,
        )
        for number, point in enumerate(points)
    ]


def test_the_report_says_what_mattered_and_which_trial_won(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    records = finished(study, 12)
    found = importances(study, records)
    assert next(iter(found)) == "dropout_end"
    assert found["dropout_end"] > 0.7
    files = sweep_files(study, records, "demo_scratch")
    assert set(files) == {"report.md", "parallel-coordinates.png", "importances.png"}
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith("png"))
    winner = max(records, key=lambda record: record.point["dropout_end"])
    row = next(line for line in files["report.md"].decode().splitlines() if line.startswith("| ") and line[2].isdigit())
    assert row.startswith(f"| {winner.number} |")


def test_without_a_terminal_each_trial_is_a_line_also_what_tunes_last_step_brought(tmp_path: Path) -> None:
    study, said = make_study(tmp_path), io.StringIO()
    records = finished(study, 2)
    with TrialsBoard(Console(file=said), study, records) as board:
        board.on_step_end(0, [])
        records.append(replace(records[0], name="sweep-002", state="failed", error="no more"))
        board.on_step_end(1, [])  # too soon to be shown
    assert [line.split(":")[0] for line in said.getvalue().splitlines()] == ["sweep-000", "sweep-001", "sweep-002"]
    assert "finished" in said.getvalue()
    assert "failed" in said.getvalue()


def test_the_winners_command_trains_the_winner(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    point = finished(study, 1)[0].point
    words = recipe_words(["demo_scratch", "--name", "sweep", "--data.train", "own"], SweepOptions)
    command = winner_command(study, point, words)
    assert command.startswith("python -m jobs.train demo_scratch --data.train own --name sweep-best ")
    parsed, _ = parse_recipe(shlex.split(command)[3:], prog="test")
    assert parsed.stages == study.configure(point).stages
    assert (parsed.name, parsed.data.train) == ("sweep-best", "own")


def test_a_confirmation_trains_both_over_further_seeds(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    winner = finished(study, 1)[0].point
    confirming, count = confirmation(study, winner, 3, share=True)
    ledger = Ledger(confirming.storage)
    while (record := next_record(confirming, ledger, count)) is not None:
        config = confirming.configure(record.point)
        assert config.stages == (study.configure(winner) if record.point["values"] == "winner" else study.base).stages
        assert config.seed == record.point["seed"]
        record.state = "finished"
        gain = 0.1 * record.point["seed"] if record.point["values"] == "winner" else 0.0
        record.stages = [{"val/accuracy": 0.5 + gain}] * 4
    assert [(r.point["seed"], r.point["values"]) for r in ledger.records] == [
        (seed, values) for seed in (1, 2, 3) for values in ("recipe", "winner")
    ]
    assert len(confirming.shared) == 3  # each seed's first stage, for both
    found = comparison(confirming, ledger.records)
    assert found.difference == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(0.1 / 3**0.5)


@pytest.mark.parametrize("name", ["image_size", "latency_repeats", "latency_checks", "epochs"])
def test_a_search_wants_numbers_that_can_be_measured(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is -1: "):
        SearchOptions(**{name: -1})  # type: ignore[arg-type]


# Runner --------------------------------------------------------------------------------------------------------------


def test_a_trial_is_finished_with_its_last_stage_and_an_older_one_left_open_then_is_taken_up_again(
    tmp_path: Path,
) -> None:
    told: list[Sequence[float]] = []
    study = make_study(tmp_path)
    study.strategy.tell = lambda point, scores, *, finished: told.append(scores)  # type: ignore[method-assign]
    ledger = Ledger(study.storage)
    runner = StudyRunner(study, SweepOptions(), ledger, files=lambda records: {})
    searcher = LedgerSearcher(lambda: next_record(study, ledger, 2), lambda record: {}, runner._heard)
    searcher.suggest("tune-0")
    for stage in range(1, len(study.base.stages) + 1):
        assert ledger.records[0].state == "open"
        searcher.on_trial_result("tune-0", {"stage": stage, "metrics/val/accuracy": 0.5})
    # A kill from here on, before Tune says that the trial has ended, loses nothing.
    assert read_records(study.storage)[0].state == "finished"
    searcher.on_trial_complete("tune-0")
    assert told == [[0.5] * 4]

    left = replace(ledger.records[0], state="open")
    ledger.records[0] = left
    assert runner._left(4) == [left]
    assert runner._left(3) == []

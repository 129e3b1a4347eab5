from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.schedule.adaptive import next_regularization, plateau
from pipeline.schedule.stages import AUTO, AdaptiveConfig, TrainingStage, ramp, with_batch_sizes

RULES = AdaptiveConfig(plateau=True, min_delta=0.01, closed_loop=True, gap=0.1, gain=2.0)


def rows(*values: float) -> list[dict[str, float]]:
    return [{"val/accuracy": value} for value in values]


@pytest.mark.parametrize(
    ("values", "ended"),
    [
        ((), False),
        ((0.5,), False),
        ((0.5, 0.6, 0.7), False),
        ((0.5, 0.6, 0.60, 0.60), True),
        ((0.5, 0.6, 0.605, 0.609), True),  # within min_delta of the best
        ((0.5, 0.6, 0.605, 0.62), False),
        ((0.7, 0.6, 0.65), True),  # two after the best one, though rising
    ],
)
def test_a_plateau_is_so_many_evaluations_without_a_better_one(values: tuple[float, ...], ended: bool) -> None:
    assert bool(plateau(RULES, rows(*values), patience=2)) == ended


def test_the_lowest_can_be_the_best_and_other_metrics_are_not_looked_at() -> None:
    rules = AdaptiveConfig(metric="val/loss", better="lowest")
    history = [{"val/loss": value, "val/accuracy": 0.0} for value in (1.0, 0.9, 0.95, 0.92)]
    assert plateau(rules, history, patience=2) == "val/loss has not improved on 0.9 for 2 evaluations"
    assert not plateau(rules, rows(1, 1, 1, 1), patience=1)


STAGES = ramp(epochs=4, batch_size=24, image_size=(32, 64), randaugment_magnitude=(2, 10), dropout=(0.1, 0.3))


@pytest.mark.parametrize(
    ("val", "strength"),
    [(1.1, 0.5), (1.2, 0.7), (1.0, 0.3), (9.0, 1.0), (0.0, 0.0)],  # training loss 1.0: what is wanted, more, less
)
def test_regularization_follows_the_gap_within_the_recipes_range(val: float, strength: float) -> None:
    now = TrainingStage(image_size=48, epochs=1, batch_size=24, randaugment_magnitude=6, dropout=0.2)  # the middle
    values, reason = next_regularization(RULES, STAGES, now, [{"train_eval/loss": 1.0, "val/loss": val}])
    assert values == pytest.approx({"randaugment_magnitude": 2 + 8 * strength, "dropout": 0.1 + 0.2 * strength})
    assert f"0.50 -> {strength:.2f}" in reason
    assert f"a gap of {val - 1:.3f} (target: 0.1)" in reason


def test_stochastic_depth_follows_the_gap_too_where_it_has_a_range() -> None:
    measured = [{"train_eval/loss": 1.0, "val/loss": 1.1}]
    deep = tuple(replace(one, stochastic_depth=rate) for one, rate in zip(STAGES, (0.0, 0.1, 0.2, 0.4), strict=True))
    now = replace(deep[1], randaugment_magnitude=6)
    assert next_regularization(RULES, deep, now, measured)[0]["stochastic_depth"] == pytest.approx(0.2)
    models = (
        replace(STAGES[0], stochastic_depth=None),
        *deep[1:],
    )  # the first stage has the model's: no range is known
    assert "stochastic_depth" not in next_regularization(RULES, models, now, measured)[0]


def test_nothing_measured_or_no_range_leaves_the_ramp() -> None:
    assert next_regularization(RULES, STAGES, STAGES[0], [{"val/accuracy": 1.0}]) == ({}, "")
    flat = ramp(epochs=4, batch_size=24, image_size=(32, 64))
    assert next_regularization(RULES, flat, flat[0], [{"train_eval/loss": 1.0, "val/loss": 2.0}]) == ({}, "")


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_an_automatic_batch_grows_as_the_images_shrink(rule: str, factor: float) -> None:
    stages = tuple(
        TrainingStage(image_size=size, epochs=1, batch_size=batch)
        for size, batch in ((16, AUTO), (32, AUTO), (48, AUTO), (56, 36), (64, 48))
    )
    sized = with_batch_sizes(stages, AdaptiveConfig(batch_growth=4.0, batch_lr_rule=rule), multiple=12)  # type: ignore[arg-type]
    assert [stage.batch_size for stage in sized] == [192, 192, 84, 36, 48]  # 85.3 is rounded down to the lanes
    assert [stage.lr_factor for stage in sized[:2]] == [factor, factor]
    assert sized[3:] == stages[3:]
    assert with_batch_sizes(sized, AdaptiveConfig(), multiple=12) == sized


def test_an_automatic_batch_needs_a_last_stage_to_grow_from() -> None:
    with pytest.raises(ValueError, match="last stage's batch_size is 0"):
        with_batch_sizes((TrainingStage(image_size=16, epochs=1, batch_size=AUTO),), AdaptiveConfig(), multiple=12)

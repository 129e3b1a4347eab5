from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schedule.decisions import (
    Checkpoint,
    Decision,
    DecisionRecord,
    ExtendStage,
    NextStage,
    Pause,
    Resume,
    SetField,
    Stop,
    in_order,
    paused,
    record_of,
)
from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import TrainingStage

STAGES = tuple(
    TrainingStage(image_size=size, epochs=epochs, batch_size=24, randaugment_magnitude=magnitude)
    for size, epochs, magnitude in ((32, 4, 0.0), (48, 4, 4.0), (64, 8, 8.0))
)
EPOCH = 240


def schedule(*records: DecisionRecord, max_epochs: float = 0.0) -> TrainingSchedule:
    return TrainingSchedule(STAGES, EPOCH, records, max_epochs)


def edges(runs: TrainingSchedule) -> list[tuple[int, int]]:
    return [(span.start, span.stop) for span in runs.spans]


def test_without_decisions_it_is_the_recipes_plan() -> None:
    plan = schedule()
    assert edges(plan) == [(0, 960), (960, 1920), (1920, 3840)]
    assert [plan.position(cursor) for cursor in (0, 100, 3840)] == [0, 100, 3840]


def test_unused_samples_are_saved_or_go_to_the_later_stages_in_proportion() -> None:
    saved = schedule(DecisionRecord(240, 0, NextStage()))
    assert edges(saved) == [(0, 240), (240, 1200), (1200, 3120)]
    later = schedule(DecisionRecord(240, 0, NextStage(pass_on=True)))
    assert edges(later) == [(0, 240), (240, 1440), (1440, 3840)]  # 720 samples: a third, and two thirds
    again = schedule(DecisionRecord(240, 0, NextStage(pass_on=True)), DecisionRecord(480, 1, NextStage(pass_on=True)))
    assert edges(again) == [(0, 240), (240, 480), (480, 3840)]
    assert edges(schedule(DecisionRecord(240, 0, NextStage(pass_on=True)), max_epochs=4.5))[1] == (240, 240 + 1080)


def test_an_extension_moves_what_follows() -> None:
    longer = schedule(DecisionRecord(480, 0, ExtendStage(epochs=2)))
    assert edges(longer) == [(0, 1440), (1440, 2400), (2400, 4320)]


def test_the_next_stage_gets_the_values_that_were_decided_and_only_it() -> None:
    runs = schedule(DecisionRecord(960, 0, NextStage(values={"randaugment_magnitude": 1.5})))
    assert [span.stage.randaugment_magnitude for span in runs.spans] == [0.0, 1.5, 8.0]


records = st.lists(st.tuples(st.booleans(), st.integers(1, 30), st.booleans()), max_size=3)


@given(records)
def test_the_learning_rates_position_never_jumps_and_ends_where_the_plan_ends(
    changes: list[tuple[bool, int, bool]],
) -> None:
    plan, done = schedule(), list[DecisionRecord]()
    for extend, steps, pass_on in changes:
        runs = schedule(*done)
        index = sum(isinstance(record.decision, NextStage) for record in done)
        if index == len(STAGES) - 1:
            break
        span = runs.spans[index]
        start = max(span.start, done[-1].cursor if done else 0)
        cursor = min(start + steps * 24, span.stop)
        done.append(DecisionRecord(cursor, index, ExtendStage(epochs=1.0) if extend else NextStage(pass_on=pass_on)))
        assert schedule(*done).position(cursor) == pytest.approx(runs.position(cursor))
    runs = schedule(*done)
    assert runs.position(runs.total_samples) == pytest.approx(plan.total_samples)
    places = [runs.position(cursor) for cursor in range(0, runs.total_samples + 1, 24)]
    assert places == sorted(places)


def test_a_live_field_has_its_newest_value_from_its_cursor_on() -> None:
    runs = schedule(
        DecisionRecord(48, 0, SetField(name="lr_scale", value=0.5)),
        DecisionRecord(96, 0, SetField(name="lr_scale", value=2.0)),
    )
    assert [runs.setting("lr_scale", cursor, 1.0) for cursor in (24, 48, 72, 96, 500)] == [1.0, 0.5, 0.5, 2.0, 2.0]
    assert runs.setting("patience", 500, 3) == 3


@pytest.mark.parametrize(
    "decision",
    [
        NextStage(reason="asked", asked_by="ann@here", time_s=1.5, pass_on=True, values={"dropout": 0.1}),
        NextStage(),
        ExtendStage(epochs=2.5, asked_by="ann@here"),
        SetField(name="lr_scale", value=0.0),
        Checkpoint(),
        Stop(time_s=2.0),
    ],
)
def test_a_record_survives_json(decision: Decision) -> None:
    record = DecisionRecord(48, 1, decision)
    assert record_of(json.loads(json.dumps(record.entry()))) == record


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExtendStage(epochs=0), "extend 0: give"),
        (lambda: SetField(name="seed", value=1), "set seed: only lr_scale, patience, log_every"),
        (lambda: SetField(name="patience", value=1.5), "set patience 1.5: give a whole number from 1 on"),
        (lambda: SetField(name="log_every", value=0), "set log_every 0"),
        (lambda: SetField(name="lr_scale", value=float("nan")), "set lr_scale nan"),
    ],
)
def test_a_bad_decision_is_one_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_decisions_of_one_point_have_one_order_and_a_pause_lasts_until_it_is_ended() -> None:
    some = in_order([Stop(), NextStage(), Checkpoint(), SetField(name="patience", value=2)])
    assert [decision.kind for decision in some] == ["set", "next_stage", "checkpoint", "stop"]
    assert not paused([])
    assert paused([DecisionRecord(0, 0, Pause())])
    assert not paused([DecisionRecord(0, 0, Pause()), DecisionRecord(0, 0, Resume())])
    assert not paused([DecisionRecord(0, 0, Pause()), DecisionRecord(0, 0, Stop())])  # submitted again, it trains

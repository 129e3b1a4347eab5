from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from model.head import TaskHead
from pipeline.checkpoint.format import Snapshot
from pipeline.checkpoint.state import TrainState
from pipeline.schedule.decisions import Decision, ExtendStage, NextStage, Pause, Resume, SetField, Stop
from pipeline.schedule.policy import Progress
from pipeline.schedule.schedule import crossed
from pipeline.training.learner import step_seed
from pipeline.training.memory import MemoryLimitError
from pipeline.training.trainer import TrainingError
from pipeline.training_config import CheckpointConfig
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer


def test_a_run_goes_through_its_stages_and_learns(make_config: MakeConfig) -> None:
    hooks = Recorder()
    trainer = make_trainer(make_config(), hooks)
    assert isinstance(trainer.run(), NextStage)
    assert hooks.sizes == [32, 48]
    assert trainer.state.cursor == trainer.progress.schedule.total_samples == 528
    losses = [row["train/loss"] for _, row in hooks.rows if "train/loss" in row]
    assert sum(losses[3:6]) < sum(losses[:3])  # at one image size; the next stage is harder
    evaluated = [cursor for cursor, row in hooks.rows if "val/accuracy" in row]
    assert evaluated == [144, 264, 408, 528]  # the step that crosses an epoch of 132 samples, and each stage's end
    assert [result["samples"] for result in trainer.state.stage_results[:2]] == [264, 264]
    assert isinstance(trainer.run(), NextStage)  # nothing left
    assert trainer.state.cursor == 528


@pytest.mark.parametrize("index", [0, 2, 3, 5])
def test_resume_from_any_checkpoint_is_bit_for_bit(make_config: MakeConfig, whole_run: Recorder, index: int) -> None:
    whole, resumed = whole_run, Recorder()
    trainer = make_trainer(make_config(seed=0), resumed)
    for parameter in trainer.learner.model.parameters():
        parameter.data.zero_()  # nothing may come from the fresh start
    trainer.restore(whole.snapshots[index])
    trainer.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])
    tail = [
        (c, r["train/loss"]) for c, r in whole.rows if "train/loss" in r and c > whole.snapshots[index].state.cursor
    ]
    assert tail == [(c, r["train/loss"]) for c, r in resumed.rows if "train/loss" in r]


def test_another_seed_is_another_run(make_config: MakeConfig) -> None:
    one, other = Recorder(), Recorder()
    make_trainer(make_config(), one).run(last_stage=0)
    make_trainer(make_config(seed=1), other).run(last_stage=0)
    with pytest.raises(AssertionError):
        assert_same_weights(one.snapshots[-1], other.snapshots[-1])


def test_accumulation_equals_the_whole_batch_without_batch_statistics(make_config: MakeConfig) -> None:
    def final(micro: int) -> Snapshot:
        config = make_config()
        stages = tuple(replace(stage, dropout=0.0) for stage in config.stages[:1])
        config = replace(
            config,
            stages=stages,
            model=replace(config.model, name="swin_t", rows=(), stochastic_depth=0.0, norm_momentum=None),
            optimizer=replace(config.optimizer, optimizer="sgd", lr=1e-4),
            trainer=replace(config.trainer, micro_batch_size=micro),
        )
        hooks = Recorder()
        trainer = make_trainer(config, hooks)
        trainer.state.cursor = 216  # two steps are enough
        trainer.run()
        return hooks.snapshots[-1]

    whole, split = final(0), final(7)
    for name, tensor in whole.model.items():
        torch.testing.assert_close(tensor, split.model[name], rtol=1e-4, atol=1e-5)


def test_advance_ends_a_stage_early_and_a_resumed_run_repeats_it(make_config: MakeConfig) -> None:
    def advance_at_96(progress: Progress) -> tuple[Decision, ...]:
        return (NextStage(asked_by="ann@here"),) if progress.cursor == 96 else ()

    whole = Recorder(advance_at_96)
    trainer = make_trainer(make_config(), whole)
    trainer.run()
    assert trainer.state.stage_starts == [0, 96, 360]
    assert trainer.state.decisions == [
        {"cursor": 96, "stage": 0, "decision": "next_stage", "asked_by": "ann@here"},
        {"cursor": 360, "stage": 1, "decision": "next_stage", "reason": "its length is reached"},
    ]
    after = next(snapshot for snapshot in whole.snapshots if snapshot.state.cursor == 96)
    resumed = Recorder()  # nobody asks again: the decision is in the state
    again = make_trainer(make_config(), resumed)
    again.restore(after)
    again.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])


@pytest.mark.parametrize("at", [264, 300])  # a stage's very end, and inside of a stage
def test_stop_saves_and_a_resumed_run_ends_the_same(make_config: MakeConfig, whole_run: Recorder, at: int) -> None:
    stopped, began_s = Recorder(lambda progress: (Stop(),) if progress.cursor >= at else ()), time.time()
    trainer = make_trainer(make_config(), stopped)
    assert isinstance(trainer.run(), Stop)
    assert stopped.snapshots[-1].state.cursor == trainer.state.cursor < trainer.progress.schedule.total_samples
    assert began_s < stopped.snapshots[0].metadata.taken_s < stopped.snapshots[-1].metadata.taken_s < time.time()
    resumed = Recorder()
    again = make_trainer(make_config(), resumed)
    again.restore(stopped.snapshots[-1])
    again.run()
    assert_same_weights(whole_run.snapshots[-1], resumed.snapshots[-1])


def at(cursor: int, *decisions: Decision) -> Callable[[Progress], tuple[Decision, ...]]:
    """Decide something at the first decision point at or after a cursor."""
    left = list(decisions)

    def decide(progress: Progress) -> tuple[Decision, ...]:
        if progress.cursor < cursor or not left:
            return ()
        now, left[:] = tuple(left), []
        return now

    return decide


@pytest.mark.parametrize(
    ("cursor", "decisions"),
    [
        (96, (SetField(name="lr_scale", value=0.1), SetField(name="log_every", value=3), ExtendStage(epochs=0.5))),
        (264, (ExtendStage(epochs=0.5),)),  # at the stage's very end
    ],
)
def test_what_is_decided_live_is_repeated_bit_for_bit_from_any_checkpoint(
    make_config: MakeConfig, cursor: int, decisions: tuple[Decision, ...]
) -> None:
    whole = Recorder(at(cursor, *decisions))
    trainer = make_trainer(make_config(), whole)
    trainer.run()
    assert trainer.state.cursor == 528 + 72
    snapshot = next(snapshot for snapshot in whole.snapshots if snapshot.state.decisions)
    assert snapshot.state.cursor == cursor
    resumed = Recorder()
    again = make_trainer(make_config(), resumed)
    again.restore(snapshot)
    again.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])
    assert again.state.decisions == trainer.state.decisions
    after = [(at, row["train/loss"], row["train/lr"]) for at, row in whole.rows if at > cursor and "train/loss" in row]
    assert after == [(at, row["train/loss"], row["train/lr"]) for at, row in resumed.rows if "train/loss" in row]
    rates = {at: row["train/lr"] for at, row in whole.rows if "train/lr" in row}
    if len(decisions) > 1:
        assert rates[144] < 0.2 * rates[96]
        assert {216, 288, 360} <= rates.keys()  # every third step


def test_a_pause_costs_no_step_and_holds_over_a_restart(
    make_config: MakeConfig, whole_run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.trainer.PAUSE_POLL_S", 0.001)
    polls = iter(range(100))

    def pause_at_96(progress: Progress) -> tuple[Decision, ...]:
        if progress.cursor == 96 and not progress.paused and not progress.decisions:
            return (Pause(),)
        return (Resume(),) if progress.paused and next(polls) % 3 == 2 else ()

    paused = Recorder(pause_at_96)
    make_trainer(make_config(), paused).run()
    assert next(polls) == 3
    assert_same_weights(whole_run.snapshots[-1], paused.snapshots[-1])
    again = make_trainer(make_config(), waiting := Recorder(pause_at_96))
    again.restore(next(snapshot for snapshot in paused.snapshots if snapshot.state.cursor == 96))
    again.run()
    assert next(polls) > 4  # it waited again before its first step
    assert_same_weights(whole_run.snapshots[-1], waiting.snapshots[-1])


TIMES = ("train_s", "cpu_s", "eval_s")


def learned(state: TrainState) -> list[dict[str, float]]:
    """The evaluations without the times that they were made at, which differ from run to run."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in state.evaluations]


@pytest.mark.parametrize(
    ("every_s", "saved_at"),
    [(0, [264]), (1e-9, [48, 96, 144, 192, 240, 264]), (1e6, [264])],  # every second step is a log step
)
def test_a_checkpoint_is_due_by_time_at_log_steps(make_config: MakeConfig, every_s: float, saved_at: list[int]) -> None:
    config = make_config(checkpoint=CheckpointConfig(every_epochs=0, every_s=every_s))
    hooks = Recorder()
    make_trainer(config, hooks).run(last_stage=0)
    assert [snapshot.state.cursor for snapshot in hooks.snapshots] == saved_at


def test_the_training_loss_that_the_rules_see_does_not_depend_on_a_restart(
    make_config: MakeConfig, whole_run: Recorder
) -> None:
    state = whole_run.snapshots[-1].state
    rows = learned(state)
    assert [row["cursor"] for row in rows] == [144, 264, 408, 528]
    assert {frozenset(row) for row in rows} == {
        frozenset(("cursor", "stage", "workers", "train/loss", "val/loss", "val/accuracy"))
    }
    for clock in TIMES:
        seconds = [row[clock] for row in state.evaluations]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    middle = next(snapshot for snapshot in whole_run.snapshots if snapshot.state.cursor == 216)
    assert middle.state.since_evaluation["steps"] == 3
    again = make_trainer(make_config(), Recorder())
    again.restore(middle)
    again.run()
    assert learned(again.state) == rows


def test_a_loss_that_is_not_finite_ends_the_run_with_the_cure(make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config(), Recorder())
    with torch.no_grad():
        next(trainer.learner.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss is nan at cursor 48 .*optimizer\.lr"):
        trainer.run()


def test_evaluation_does_not_depend_on_the_batch(make_config: MakeConfig) -> None:
    config = make_config()
    results = []
    for size in (1, 7, 30, 64):
        trainer = make_trainer(replace(config, trainer=replace(config.trainer, eval_batch_size=size)), Recorder())
        results.append(trainer.evaluate(48))
    assert len({round(result["accuracy"] * 30) for result in results}) == 1
    assert [r["loss"] for r in results] == pytest.approx([results[0]["loss"]] * 4, rel=1e-5)


def test_crossed_and_step_seed() -> None:
    assert [c for c in range(0, 60, 6) if crossed(10, c, c + 6)] == [6, 18, 24, 36, 48, 54]
    assert not crossed(0, 0, 100)
    seeds = {step_seed(seed, cursor, rank) for seed in range(3) for cursor in range(0, 480, 48) for rank in range(4)}
    assert len(seeds) == 120
    assert step_seed(0, 48, 1) == step_seed(0, 48, 1)


def test_a_picture_that_cannot_be_made_is_a_warning(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    class Shown(Recorder):
        pictures: Mapping[str, bytes] = MappingProxyType({})

        def ended(self, pictures: Mapping[str, bytes]) -> None:
            self.pictures = pictures

    config = make_config(stages=make_config().stages[:1])
    good = Shown()
    trainer = make_trainer(config, good)
    trainer.run()
    assert {*good.pictures} == {"predictions.png", "confusion-matrix.png"}
    assert all(picture.startswith(b"\x89PNG") for picture in good.pictures.values())
    bad = Shown()
    again = make_trainer(config, bad)
    again.restore(good.snapshots[-1])
    again.task.classes = ("one name for four classes",)
    assert isinstance(again.run(), NextStage)
    assert bad.pictures == {}
    assert "could not be made" in caplog.text


def test_weights_that_cannot_be_compared_are_a_warning(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(make_config(stages=make_config().stages[:1]), hooks := Recorder())
    scores = trainer.evaluator.scores

    def fails_at_the_end(model: nn.Module, size: int) -> tuple[dict[str, float], torch.Tensor | None]:
        if model is trainer.learner.model:
            raise MemoryLimitError("not even one image fits into memory")
        return scores(model, size)

    trainer.evaluator.scores = fails_at_the_end  # type: ignore[method-assign]
    assert isinstance(trainer.run(), NextStage)
    assert "not even one image fits into memory" in caplog.text
    assert hooks.snapshots[-1].state.cursor == trainer.state.cursor


def test_a_frozen_run_trains_the_head_alone(make_config: MakeConfig) -> None:
    base = make_config()
    config = replace(
        base,
        stages=base.stages[:1],
        model=replace(base.model, frozen=True),
        optimizer=replace(base.optimizer, weight_decay=0.1),
    )
    hooks = Recorder()
    trainer = make_trainer(config, hooks)
    before = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    trainer.run()
    end = hooks.snapshots[-1]
    assert end.ema is not None
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert {name for name, value in end.model.items() if not torch.equal(value, before[name])} == head
    # The average of a constant is that constant but for rounding, so what is evaluated is the frozen encoder too.
    for name, value in before.items():
        if name not in head:
            torch.testing.assert_close(end.ema[f"module.{name}"], value)


def test_dropout_and_stochastic_depth_follow_the_stage(make_config: MakeConfig) -> None:
    config = make_config()
    first, second = config.stages
    stages = replace(first, stochastic_depth=0.3, epochs=0.2), replace(second, epochs=0.2)
    hooks = Recorder()
    trainer = make_trainer(replace(config, stages=stages), hooks)
    rates = []
    while (span := trainer.progress.span) is not None:
        trainer.fit(span)
        drops = [module.p for module in trainer.learner.model.modules() if isinstance(module, StochasticDepth)]
        heads = [module.dropout for module in trainer.learner.model.modules() if isinstance(module, TaskHead)]
        assert drops == pytest.approx([drops[-1] * index / (len(drops) - 1) for index in range(len(drops))])
        rates.append((round(drops[-1] * len(drops) / (len(drops) - 1), 9), heads))
    assert rates == [(0.3, [first.dropout]), (config.model.stochastic_depth, [second.dropout])]
    logged = [row["stage/stochastic_depth"] for _, row in hooks.rows if "train/loss" in row]
    assert logged[0] == 0.3
    assert logged[-1] == config.model.stochastic_depth

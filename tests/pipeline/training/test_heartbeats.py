"""Whatever a rank does that may take long, it says so in between: else it would be taken for one that hangs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pipeline.schedule.decisions import Decision, Pause, Resume
from pipeline.training.trainer import Trainer
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import make_trainer


class Beats(Recorder):
    """Counts a model's passes between two heartbeats."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = self.passes = self.most = self.all = 0

    def heartbeat(self) -> None:
        self.beats += 1
        self.passes = 0

    def watch(self, trainer: Trainer) -> None:
        for model in (trainer.learner.model, trainer.learner.evaluated_model):
            model.register_forward_pre_hook(self._pass)

    def _pass(self, *_: object) -> None:
        self.all += 1
        self.passes += 1
        self.most = max(self.most, self.passes)


def test_no_two_passes_follow_each_other_without_a_heartbeat(make_config: MakeConfig) -> None:
    """Of the memory probe, the steps and the evaluations."""
    base = make_config()
    config = replace(
        base,
        stages=tuple(replace(stage, epochs=0.5) for stage in base.stages),
        trainer=replace(base.trainer, probe_memory="always", eval_batch_size=8),
    )
    trainer = make_trainer(config, beats := Beats())
    beats.watch(trainer)
    trainer.run()
    assert trainer.state.micro_limits
    # the probe, the steps, two evaluations of 30 images, the weights beside their average at the end, pictures
    assert beats.all == 1 + 6 + 2 * 4 + 4 + 1
    assert beats.most == 1


def test_no_two_passes_of_the_probe_follow_each_other_either_where_little_fits(make_config: MakeConfig) -> None:
    base = make_config()
    trainer = make_trainer(replace(base, trainer=replace(base.trainer, probe_memory="always")), beats := Beats())
    beats.watch(trainer)

    def nothing_fits(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise torch.OutOfMemoryError

    trainer.learner.model.register_forward_pre_hook(nothing_fits)
    with pytest.raises(ValueError, match="not even one image"):
        trainer.run()
    assert beats.all == 5  # 24, 12, 6, 3, 1
    assert beats.most == 1


def test_each_compilation_ahead_has_a_heartbeat(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # as many passes, without the compiler's minutes
    base = make_config()
    config = replace(base, trainer=replace(base.trainer, compile=True, micro_batch_size=16))
    trainer = make_trainer(config, beats := Beats())
    beats.watch(trainer)
    monkeypatch.setattr(trainer, "fit", lambda *_: pytest.fail("a step"))
    with pytest.raises(pytest.fail.Exception, match="a step"):
        trainer.run()
    assert beats.all == 4  # two stages, whose micro-batches have 12 samples, and the evaluation of each
    assert beats.most == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_paused_rank_has_heartbeats_whichever_it_is(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr("pipeline.training.trainer.PAUSE_POLL_S", 0.0)
    trainer = make_trainer(make_config(), beats := Beats())
    trainer.rank = rank
    told: list[int] = []

    def of_rank_0(own: Sequence[Decision], device: torch.device) -> Sequence[Decision]:
        if told or trainer.state.cursor >= 96:
            told.append(beats.beats)
        return {1: (Pause(),), 11: (Resume(),)}.get(len(told), ())

    monkeypatch.setattr("pipeline.training.trainer.agreed", of_rank_0)
    trainer.run(last_stage=0)
    assert told[:11] == list(range(told[0], told[0] + 11))

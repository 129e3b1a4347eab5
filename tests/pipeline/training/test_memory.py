from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from datasets.loading.batch import Batch
from pipeline.schedule.stages import TrainingStage
from pipeline.training.inputs import StepInputs
from pipeline.training.memory import (
    MemoryLimitError,
    OutOfMemoryError,
    halved,
    largest_that_fits,
    micro_batch,
    stage_limits,
)
from pipeline.training.setup import fit_into_memory
from pipeline.training.trainer import Trainer
from pipeline.training.transfer import Transfer
from tests.support.alive_bytes import AliveBytes
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer


def limited(trainer: Trainer, pixels: int, *, training: bool = True) -> list[tuple[int, ...]]:
    """Stand in for a device's memory: a pass over more pixels than it has runs out of it. Returns the passes tried, of
    training or of evaluation."""
    passes: list[tuple[int, ...]] = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training == training:
            passes.append(tuple(inputs[0].shape))
            if inputs[0].shape[0] * inputs[0].shape[-1] ** 2 > pixels:
                raise torch.OutOfMemoryError("no room")

    model = trainer.learner.model if training else trainer.learner.evaluated_model
    model.register_forward_pre_hook(check)
    return passes


@pytest.mark.parametrize(("room", "fits"), [(100, 48), (48, 48), (47, 24), (23, 12), (1, 1)])
def test_the_largest_that_fits_is_found_by_halving(room: int, fits: int) -> None:
    tried: list[int] = []

    def try_pass(count: int) -> None:
        tried.append(count)
        if count > room:
            raise torch.OutOfMemoryError

    assert largest_that_fits(try_pass, 48) == fits
    assert tried == [48, 24, 12, 6, 3, 1][: len(tried)]


def test_when_nothing_fits_the_cure_is_named() -> None:
    def try_pass(count: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(MemoryLimitError, match="smaller last image_size or model"):
        largest_that_fits(try_pass, 48)
    with pytest.raises(MemoryLimitError, match="stage 2"):
        halved([4, 1], 1, 1)


@pytest.mark.parametrize("told", ["CUDNN_STATUS_ALLOC_FAILED", "CUDA driver error: out of memory"])
def test_libraries_without_memory_count_as_pytorch_without_it(told: str) -> None:
    def try_pass(count: int) -> None:
        if count > 12:
            raise RuntimeError(f"cuDNN error: {told}")

    assert largest_that_fits(try_pass, 48) == 12

    def broken(count: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_that_fits(broken, 48)


def test_memory_that_runs_out_while_a_batch_is_made_ready_is_of_its_stage(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_config(), Recorder())

    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("pipeline.training.inputs.normalized", no_room)
    with pytest.raises(OutOfMemoryError, match="out of memory in stage 1 with 24 samples"):
        trainer.run()


def test_limits_follow_the_pixels_and_chunks_are_even() -> None:
    stages = [TrainingStage(image_size=size, epochs=1, batch_size=96) for size in (32, 48, 64)]
    assert stage_limits(stages, 60) == [204, 90, 60]  # with a margin for the other stages
    assert stage_limits(stages, 6) == [20, 9, 6]
    near = [replace(stages[0], image_size=size) for size in (62, 64)]
    assert stage_limits(near, 6) == [6, 6]  # never fewer than of the larger images
    assert [micro_batch(48, limit) for limit in (0, 100, 48, 24, 20, 10, 1)] == [48, 48, 48, 24, 16, 10, 1]
    assert halved([24, 10, 6], 1, 10) == [24, 5, 3]
    assert halved([24, 10, 6], 0, 24) == [12, 5, 3]
    assert halved([352, 176], 0, 64) == [32, 16]  # the worker's share was 64


def test_the_probe_runs_once_holds_the_global_batch_and_leaves_no_trace(make_config: MakeConfig) -> None:
    base = make_config()
    config = replace(base, trainer=replace(base.trainer, probe_memory="always"))
    probed = make_trainer(config, hooks := Recorder())
    before = {name: value.clone() for name, value in probed.learner.model.state_dict().items()}
    passes = limited(probed, pixels=8 * 48**2)
    fit_into_memory(probed.progress, probed.learner, probed.feed, lambda: None)
    assert passes == [(24, 3, 48, 48), (12, 3, 48, 48), (6, 3, 48, 48)]  # the last stage's images
    assert probed.state.micro_limits == [11, 6]
    assert all(torch.equal(value, before[name]) for name, value in probed.learner.model.state_dict().items())
    probed.run()
    assert set(passes[3:]) == {(8, 3, 32, 32), (6, 3, 48, 48)}
    assert probed.state.cursor == 528
    # The same micro-batches without a probe are the same run; a resumed one doesn't probe, and uses them too.
    resumed = make_trainer(config, other := Recorder())
    resumed.restore(hooks.snapshots[1])
    passes = limited(resumed, pixels=8 * 48**2)
    resumed.run()
    assert (24, 3, 48, 48) not in passes
    assert_same_weights(hooks.snapshots[-1], other.snapshots[-1])


def test_the_probe_takes_the_largest_of_a_stages_random_sizes(make_config: MakeConfig) -> None:
    base = make_config()
    last = replace(base.stages[1], image_size=40, random_sizes=(32, 48), random_size_share=1.0)
    stages = base.stages[0], last
    probed = make_trainer(
        replace(base, stages=stages, trainer=replace(base.trainer, probe_memory="always")), Recorder()
    )
    passes = limited(probed, pixels=8 * 48**2)
    fit_into_memory(probed.progress, probed.learner, probed.feed, lambda: None)
    assert passes == [(24, 3, 48, 48), (12, 3, 48, 48), (6, 3, 48, 48)]
    assert probed.state.micro_limits == [11, 6]


class InTurn(Transfer):
    """Copies batches as it does to a GPU: into memory of two."""

    @contextmanager
    def on_device(self, batch: Batch) -> Iterator[Batch]:
        slot = self._slots[0]
        self._slots.reverse()
        yield slot.hold(batch)


@pytest.mark.parametrize("mixed", [True, False])
def test_the_probe_holds_what_a_step_holds(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    monkeypatch.setattr("pipeline.training.setup.Transfer", InTurn)
    base, count = make_config(), 12
    alphas = {"mixup_alpha": 0.5 * mixed, "cutmix_alpha": 0.5 * mixed}
    config = replace(
        base,
        stages=(replace(base.stages[1], **alphas),),  # type: ignore[arg-type]
        trainer=replace(base.trainer, probe_memory="always"),
    )
    probed, stepped = (make_trainer(config, Recorder()) for _ in range(2))
    limited(probed, pixels=count * 48**2)
    with AliveBytes() as probe:
        fit_into_memory(probed.progress, probed.learner, probed.feed, lambda: None)
    assert probed.state.micro_limits == [count]

    (span,), transfer = stepped.progress.schedule.spans, InTurn(stepped.device)
    stepped.learner.regularize(span.stage)
    with AliveBytes() as step:
        for number, batch in zip(range(3), stepped.feed.loader(span), strict=False):
            with transfer.on_device(batch) as there:
                inputs = StepInputs(there, span.stage, config, stepped.task, stepped.device)
                stepped.learner.step_in_parts(inputs.parts(count), len(inputs), seed=number, lr=1e-3)
    assert step.peak <= probe.peak <= 1.05 * step.peak


def test_out_of_memory_in_a_step_goes_on_with_half_from_the_checkpoint(make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config(), hooks := Recorder())
    limited(trainer, pixels=14 * 48**2)
    with pytest.raises(OutOfMemoryError, match="stage 2 with 24 samples") as error:
        trainer.run()
    again = make_trainer(make_config(), Recorder())
    again.restore(hooks.snapshots[-1])
    passes = limited(again, pixels=14 * 48**2)
    again.progress.lower_limits([(error.value.stage, error.value.limit)], 1)
    again.progress.lower_limits([(error.value.stage, error.value.limit)], 1)  # told again: it's lower already
    assert again.state.micro_limits == [24, 12]
    again.run()
    assert set(passes) == {(12, 3, 48, 48)}
    assert again.state.cursor == 528


def test_out_of_memory_in_an_evaluation_goes_on_with_half(make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config(), Recorder())
    whole = trainer.evaluate(48)
    passes = limited(trainer, pixels=7 * 48**2, training=False)
    halves = trainer.evaluate(48)
    # 30 images in batches of 16: what didn't fit isn't tried again, and every image counts once.
    assert [count for count, *_ in passes] == [16, 8, 4, 4, 4, 4, 4, 4, 4, 2]
    assert halves == pytest.approx(whole, rel=1e-5)
    limited(trainer, pixels=0, training=False)
    with pytest.raises(MemoryLimitError, match="not even one image"):
        trainer.evaluate(48)

"""BatchNorm's statistics estimated again from training samples, and the ending that trains the norms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from datasets.errors import DataError
from datasets.loading.loader import build_eval_loader, build_plain_loader
from datasets.shards.describe import write_manifest
from model.factory import build_model
from model.regularization import head_and_norms
from pipeline.schedule.decisions import Decision, ExtendStage, NextStage
from pipeline.schedule.policy import Progress
from pipeline.training.inputs import stage_batches
from pipeline.training.reestimation import reestimate_from_data
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.shards import write_tar
from tests.support.trainers import assert_same_weights, make_trainer, reestimated


def test_the_samples_are_the_orders_first_as_an_evaluation_sees_them(make_config: MakeConfig) -> None:
    data = make_config().data
    options = {"image_size": 48, "batch_size": 20, "samples": 60, "seed": 3}
    whole = list(build_plain_loader(data, rank=0, world_size=1, **options))
    assert [len(batch.labels) for batch in whole] == [24, 24, 24]  # 20 rounded up to the 12 lanes, 60 to whole batches
    shares = [list(build_plain_loader(data, rank=rank, world_size=2, **options)) for rank in range(2)]
    for batch, same in zip(whole, (shares[0][0], shares[1][0], shares[0][1]), strict=True):
        assert torch.equal(batch.images, same.images)
    # The same pixels as by the evaluation of these shards, and the samples of the first training batch.
    evaluated = next(iter(build_eval_loader(replace(data, val=data.train), image_size=48, batch_size=137, rank=0,
                                            world_size=1)))  # fmt: skip
    pictures = {image.numpy().tobytes() for image in evaluated.images}
    assert all(image.numpy().tobytes() in pictures for batch in whole for image in batch.images)
    trained = stage_batches(make_config(seed=3), make_config().stages[0], start=0, stop=24, rank=0, world_size=1)
    assert torch.equal(next(iter(trained)).stream_index, whole[0].stream_index)


def test_the_result_depends_on_the_weights_and_samples_alone(make_config: MakeConfig) -> None:
    config = make_config()
    one = reestimated(config)
    again = reestimated(config, earlier=1)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(reestimated(config, size=32), one, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("ends_at", [264, 144])  # as planned, and by an operator
@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_a_run_ends_with_statistics_of_its_evaluations_size(
    make_config: MakeConfig, ends_at: int, ema_decay: float
) -> None:
    def decide(progress: Progress) -> tuple[Decision, ...]:
        return (NextStage(asked_by="ann@here"),) if progress.cursor == ends_at < 264 else ()

    base = make_config()
    config = replace(
        base,
        stages=base.stages[:1],
        optimizer=replace(base.optimizer, ema_decay=ema_decay),
        trainer=replace(base.trainer, reestimate_bn=48, eval_scale=1.5),
    )
    trainer = make_trainer(config, hooks := Recorder(decide))
    trainer.run()
    end = hooks.snapshots[-1]
    assert trainer.state.cursor == end.state.cursor == ends_at
    options = {"samples": 48, "image_size": 48, "seed": 0, "device": torch.device("cpu")}
    # The weights and their average, which are compared at the end.
    for model, kept in zip(trainer.learner.models, (end.model, end.ema or {}), strict=False):
        expected = build_model(config.model, num_classes=4)
        expected.load_state_dict(model.state_dict())
        reestimate_from_data(expected, config.data, config.trainer, **options)
        saved = {name.removeprefix("module."): value for name, value in kept.items()}
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected.state_dict()[name])
            assert torch.equal(value, saved[name])
    # What is recorded is the evaluation of these.
    measured = {f"val/{name}": value for name, value in trainer.evaluate(48).items()}
    assert {name: end.state.evaluation[name] for name in measured} == measured
    # MLflow keeps the first point of a step: it must be told of no other evaluation there.
    told = [row for cursor, row in hooks.rows if cursor == ends_at and "val/loss" in row]
    assert [row["val/loss"] for row in told] == [measured["val/loss"]]


def test_a_run_that_is_extended_goes_on_with_its_own_statistics(make_config: MakeConfig) -> None:
    def decide(progress: Progress) -> tuple[Decision, ...]:
        return (ExtendStage(epochs=1.0),) if progress.cursor == 264 else ()

    base = make_config()
    ends = []
    for samples in (0, 48):
        trainer_config = replace(base.trainer, reestimate_bn=samples, eval_scale=1.5)
        config = replace(base, stages=base.stages[:1], trainer=trainer_config)
        make_trainer(config, hooks := Recorder(decide)).run()
        ends.append(hooks.snapshots)
    extended, with_new = ({one.state.cursor: one for one in snapshots} for snapshots in ends)
    assert_same_weights(extended[264], with_new[264])
    last = max(extended)
    assert last > 264
    name = "features.0.1.running_mean"
    assert not torch.equal(extended[last].model[name], with_new[last].model[name])
    cursors = [row["cursor"] for row in with_new[last].state.evaluations]
    assert len(cursors) == len(set(cursors))


def test_a_batch_that_does_not_fit_is_taken_in_equal_parts(make_config: MakeConfig) -> None:
    """Of the model's, not of the loader's, batches: what fits is known by trying, before the statistics are reset."""
    config = make_config()
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=4)
    passes: list[int] = []

    def limited(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        passes.append(len(inputs[0]))
        if len(inputs[0]) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(limited)
    options = {"samples": 24, "image_size": 48, "seed": 0, "device": torch.device("cpu")}
    reestimate_from_data(model, config.data, replace(config.trainer, eval_batch_size=24), **options)
    assert passes[-4:] == [6, 6, 6, 6]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_too_many_corrupt_samples_are_named(make_config: MakeConfig, tmp_path: Path) -> None:
    data = make_config().data
    members: dict[str, bytes] = {}
    for number in range(40):
        members |= {f"{number:04d}.jpg": b"\xff\xd8\xff" + bytes(40), f"{number:04d}.cls": b"0"}
    write_tar(tmp_path / "part-000000.tar", members)
    write_manifest(tmp_path, ["part-000000.tar"], classes=list("abcd"))
    with pytest.raises(DataError, match=r"samples of .* are corrupt, more than data.max_damaged.*part-000000.tar"):
        reestimated(replace(make_config(), data=replace(data, train=str(tmp_path))))


def test_fixres_trains_the_classifier_and_the_norms_on_the_evaluations_crop(make_config: MakeConfig) -> None:
    base = make_config()
    first = replace(base.stages[0], epochs=0.4, dropout=0.0)
    last = replace(first, image_size=64, randaugment_magnitude=0.0, mixup_alpha=0.0, fixres=True)
    optimizer = replace(base.optimizer, weight_decay=0.1, clip_norm=1.0)
    trainer_config = replace(base.trainer, eval_scale=1.5)
    config = replace(base, stages=(first, last), optimizer=optimizer, trainer=trainer_config)
    trainer = make_trainer(config, hooks := Recorder())
    trainer.run()
    before, after = hooks.snapshots[0], hooks.snapshots[-1]
    assert before.state.cursor == 48
    trained = {id(weight) for weight in head_and_norms(trainer.learner.model)}
    for name, weight in trainer.learner.model.named_parameters():
        assert torch.equal(after.model[name], before.model[name]) == (id(weight) not in trained), name
    assert not torch.equal(after.model["features.0.1.running_mean"], before.model["features.0.1.running_mean"])
    assert config.trainer.eval_size(first) == 48
    assert config.trainer.eval_size(last) == 64  # its own
    again = make_trainer(config, resumed := Recorder())
    again.restore(before)
    again.run()
    assert_same_weights(after, resumed.snapshots[-1])


def test_a_fixres_stage_sees_the_evaluations_crop_flipped_at_most(make_config: MakeConfig) -> None:
    config = make_config()
    stage = replace(config.stages[0], image_size=40, randaugment_magnitude=0.0, mixup_alpha=0.0, fixres=True)
    batch = next(iter(stage_batches(config, stage, start=0, stop=24, rank=0, world_size=1)))
    plain = build_plain_loader(config.data, image_size=40, batch_size=24, samples=24, seed=0, rank=0, world_size=1)
    seen = next(iter(plain)).images
    same = [torch.equal(one, other) for one, other in zip(batch.images, seen, strict=True)]
    flipped = [torch.equal(one.flip(-1), other) for one, other in zip(batch.images, seen, strict=True)]
    assert all(one or other for one, other in zip(same, flipped, strict=True))
    assert any(same)
    assert any(flipped)
    with pytest.raises(ValueError, match=r"stage.crop_area is \(0.5, 1.0\): a stage with fixres"):
        replace(stage, crop_area=(0.5, 1.0))

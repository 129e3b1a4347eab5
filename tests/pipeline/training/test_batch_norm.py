"""BatchNorm's running statistics over ranks and micro-batches, and estimated again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infra.cluster.config import ClusterConfig
from model.config import ModelConfig
from model.factory import build_model
from model.regularization import freeze
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.training.batch_norm import average_statistics, momentum_share, reestimate, running_norms
from pipeline.training.distributed import rank_and_size
from pipeline.training.learner import Learner
from pipeline.training.task import build_task
from tests.support.configs import MakeConfig, small_config
from tests.support.ranks import on_ranks
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer, reestimated

STATISTICS = ("running_mean", "running_var")


def statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.endswith(STATISTICS)}


# Over ranks


def plain(config: TrainConfig, **trainer: Any) -> TrainConfig:
    """Without what a rank's number decides: dropout and stochastic depth."""
    return replace(
        config,
        stages=tuple(replace(one, dropout=0.0) for one in config.stages[:1]),
        model=replace(config.model, stochastic_depth=0.0),
        optimizer=replace(config.optimizer, optimizer="sgd"),
        trainer=replace(config.trainer, **trainer),
    )


def averaged(roles: tuple[int, ...]) -> dict[str, Tensor]:
    """Each rank's statistics are known from its role."""
    role = roles[dist.get_rank()]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(2))
    for index, norm in enumerate(running_norms(model)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.fill_(role + index)
        norm.running_var.fill_(2.0**role)
    average_statistics(running_norms(model))
    return statistics(model.state_dict())


def trained(config: TrainConfig) -> list[tuple[Snapshot, dict[str, float]]]:
    """A stage from its start, and again from its first checkpoint on."""
    found, hooks = [], Recorder()
    for resumes in (False, True):
        trainer = make_trainer(config, hooks)
        if resumes:
            trainer.restore(hooks.snapshots[0])
        trainer.run(0)
        found.append((hooks.snapshots[-1], dict(trainer.state.evaluation)))
    return found


def one_pass(images: Tensor, sync: Literal["all"] | int, config: TrainConfig) -> dict[str, Any]:
    """Logits, gradients and statistics of a pass over all ranks' parts of the images."""
    rank, world_size = rank_and_size()
    config = replace(config, trainer=replace(config.trainer, sync_batchnorm=sync))
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=4)
    learner = Learner(config, model, build_task(config.task, ("a", "b", "c", "d")), torch.device("cpu"))
    learner.regularize(config.stages[0])
    mine, outputs = images.chunk(world_size)[rank], []
    handle = model.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    targets = torch.nn.functional.one_hot(torch.arange(len(mine)) % 4, 4).float()
    learner._net.train()
    learner._pass(mine, targets, 1.0, sync=True)
    handle.remove()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": outputs[-1], "gradients": gradients, "statistics": statistics(model.state_dict())}


IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ROLES = {2: ((0, 1), (1, 0)), 4: ((0, 1, 2, 3), (2, 3, 1, 0))}


def _all(config: TrainConfig) -> dict[str, Any]:
    synchronized = plain(config, sync_batchnorm="all")
    return {
        "averaged": [averaged(roles) for roles in ROLES[dist.get_world_size()]],
        "pass": {sync: one_pass(IMAGES, sync, plain(config)) for sync in (0, 2, "all")},
        "trained": trained(config),
        "synchronized": trained(synchronized)[0][0],
        "reestimated": reestimated(config, earlier=dist.get_rank()),
    }


@pytest.fixture(scope="module")
def small(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return small_config(small_data, str(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.soak)])
def ranks(
    request: pytest.FixtureRequest, small: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two and of four ranks found; starting processes is what takes the time."""
    return on_ranks(request.param, tmp_path_factory.mktemp("ranks"), _all, small)


def test_statistics_are_the_mean_over_the_ranks_whichever_is_rank_0(ranks: list[dict[str, Any]]) -> None:
    roles = range(len(ranks))
    for found in (one for rank in ranks for one in rank["averaged"]):
        assert found["1.running_mean"].tolist() == [sum(roles) / len(roles)] * 4
        assert found["2.running_mean"].tolist() == [sum(roles) / len(roles) + 1] * 2
        assert found["1.running_var"].tolist() == [sum(2.0**role for role in roles) / len(roles)] * 4


def test_all_ranks_save_and_evaluate_the_same_and_a_resumed_run_has_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    first, metrics = ranks[0]["trained"][0]
    for snapshot, evaluation in (one for rank in ranks for one in rank["trained"]):
        assert_same_weights(snapshot, first)
        assert evaluation == metrics


def test_each_ranks_part_of_the_samples_counts_alike(ranks: list[dict[str, Any]], small: TrainConfig) -> None:
    one = reestimated(small)
    for rank in ranks:
        torch.testing.assert_close(rank["reestimated"], one, rtol=1e-4, atol=1e-5)


def test_a_synchronized_run_is_one_on_the_whole_batch(ranks: list[dict[str, Any]], small: TrainConfig) -> None:
    make_trainer(plain(small), hooks := Recorder()).run(0)
    for name, value in hooks.snapshots[-1].model.items():
        for rank in ranks:
            torch.testing.assert_close(rank["synchronized"].model[name], value, rtol=2e-3, atol=5e-4, msg=name)


def test_a_synchronized_pass_is_one_on_the_whole_batch_and_a_groups_one_on_its_part(
    ranks: list[dict[str, Any]], small: TrainConfig
) -> None:
    whole, pairs = ([one_pass(part, 0, plain(small)) for part in IMAGES.chunk(count)] for count in (1, len(ranks) // 2))
    logits = torch.cat([rank["pass"]["all"]["logits"] for rank in ranks])
    torch.testing.assert_close(logits, whole[0]["logits"], rtol=1e-3, atol=1e-4)
    for index, found in enumerate(rank["pass"] for rank in ranks):
        for kind in ("gradients", "statistics"):
            torch.testing.assert_close(found["all"][kind], whole[0][kind], rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(found[2]["statistics"], pairs[index // 2]["statistics"], rtol=2e-3, atol=1e-4)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found[0]["statistics"], whole[0]["statistics"], rtol=2e-3, atol=1e-4)


def test_workers_that_are_no_whole_groups_and_other_norms_are_refused_in_one_line(make_config: MakeConfig) -> None:
    trainer = make_config().trainer
    with pytest.raises(ValueError, match=r"sync_batchnorm is 4: 6 workers can't .* divisor of 6, all, or 0"):
        replace(trainer, sync_batchnorm=4).check_workers(6)
    with pytest.raises(ValueError, match="sync_batchnorm is -1"):
        replace(trainer, sync_batchnorm=-1)
    for size in (0, 1, 2, 3, 6, "all"):
        replace(trainer, sync_batchnorm=size).check_workers(6)
    elastic = make_config(cluster=ClusterConfig(num_workers=(2, 6)))
    assert elastic.possible_workers == [2, 3, 4, 6]  # of 12 lanes
    config = make_config(
        model=ModelConfig(name="timm/test_efficientnet"), trainer=replace(trainer, sync_batchnorm="all")
    )
    with pytest.raises(ValueError, match="can't synchronize this model's BatchNormAct2d") as error:
        make_trainer(config, Recorder())
    assert "\n" not in str(error.value)


# Over micro-batches


@settings(max_examples=30, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    momentum=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
)
def test_chunks_of_equal_data_move_the_mean_exactly_as_one_pass(chunks: list[int], momentum: float) -> None:
    whole, parts = nn.BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    image = torch.randn(1, 3, 4, 4)
    whole(image.repeat(sum(chunks), 1, 1, 1))
    for count in chunks:
        with momentum_share([parts], count / sum(chunks)):
            parts(image.repeat(count, 1, 1, 1))
    assert parts.momentum == momentum
    torch.testing.assert_close(parts.running_mean, whole.running_mean)


def _mean_after_a_step(config: TrainConfig, micro: int) -> Tensor:
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=4)
    learner = Learner(config, model, build_task(config.task, ("a", "b", "c", "d")), torch.device("cpu"))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).repeat(24, 1, 1, 1)
    learner.step(images, torch.full((24, 4), 0.25), seed=1, lr=0.0, micro=micro)
    mean = running_norms(model)[0].running_mean
    assert mean is not None
    return mean


@pytest.mark.parametrize("micro", [12, 8, 7, 1])
def test_a_step_moves_the_mean_as_far_in_any_number_of_passes(make_config: MakeConfig, micro: int) -> None:
    config = plain(make_config())
    torch.testing.assert_close(_mean_after_a_step(config, micro), _mean_after_a_step(config, 24))


def test_another_micro_batch_than_a_stage_began_with_is_logged_and_said(make_config: MakeConfig) -> None:
    class Noting(Recorder):
        def noted(self, line: str) -> None:
            lines.append(line)

    lines: list[str] = []
    config = plain(make_config())
    make_trainer(config, whole := Recorder()).run()
    assert whole.snapshots[0].state.stage_results[0]["micro_batch"] == 24
    for micro, note in ((0, []), (10, ["stage 1 goes on in passes of 8 samples instead of 24 on each worker"])):
        lines.clear()
        again = make_trainer(
            replace(config, trainer=replace(config.trainer, micro_batch_size=micro)), hooks := Noting()
        )
        again.restore(whole.snapshots[0])
        again.run()
        assert [line.partition(":")[0] for line in lines] == note
        logged = {row["stage/micro_batch"] for _, row in hooks.rows if "stage/micro_batch" in row}
        assert logged == {8 if micro else 24}


# Estimated again


def test_statistics_are_those_of_the_samples_and_nothing_else_changes() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3))
    model(torch.randn(4, 3, 5, 5))
    batches = [torch.randn(8, 3, 5, 5) + shift for shift in (0.0, 1.0, 2.0)]
    counts = [int(norm.num_batches_tracked or 0) for norm in running_norms(model)]
    assert reestimate(model, batches) == 24
    first = running_norms(model)[0]
    torch.testing.assert_close(first.running_mean, torch.stack([one.mean((0, 2, 3)) for one in batches]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([one.var((0, 2, 3)) for one in batches]).mean(0))
    assert [int(norm.num_batches_tracked or 0) for norm in running_norms(model)] == counts
    assert [norm.momentum for norm in running_norms(model)] == [0.1, 0.1]
    assert not any(module.training for module in model.modules())
    again = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate(model, batches)  # no dropout was on
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_frozen_statistics_stay(make_config: MakeConfig) -> None:
    model = build_model(make_config().model, num_classes=4)
    freeze(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate(model, [torch.randn(4, 3, 32, 32)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

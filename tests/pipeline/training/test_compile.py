from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters

from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.schedule.policy import Progress
from pipeline.training import setup as preparation
from pipeline.training.distributed import data_parallel
from tests.support.configs import MakeConfig
from tests.support.ranks import on_ranks
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer


@pytest.mark.soak
def test_all_stages_are_compiled_before_the_first_step_and_nothing_of_it_stays(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dynamo and autograd tracing as they are; without the C++ compiler, which takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    base = make_config()
    stages = base.stages[0], replace(base.stages[1], random_sizes=(32, 40), random_size_share=0.5)
    config = replace(base, stages=stages, trainer=replace(base.trainer, compile=True, micro_batch_size=16))
    graphs: list[int] = []

    def count(progress: Progress) -> tuple[()]:
        graphs.append(counters["stats"]["unique_graphs"])
        return ()

    torch._dynamo.reset()
    ahead = make_trainer(config, one := Recorder(count))
    ahead.run()
    assert graphs[0] > 0
    assert len(set(graphs)) == 1  # none after the first step
    torch._dynamo.reset()
    late = make_trainer(config, other := Recorder(count))
    monkeypatch.setattr("pipeline.training.setup.compile_ahead", lambda *_: None)
    graphs.clear()
    late.run()
    assert len(set(graphs)) > 1
    assert_same_weights(one.snapshots[-1], other.snapshots[-1])


def _compiled_ahead(config: TrainConfig) -> Snapshot:
    torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    graphs: list[int] = []

    def count(progress: Progress) -> tuple[()]:
        graphs.append(counters["stats"]["unique_graphs"])
        return ()

    make_trainer(config, ahead := Recorder(count)).run()
    compiled_ahead = set(graphs)
    graphs.clear()
    torch._dynamo.reset()
    preparation.compile_ahead = lambda *_: None  # type: ignore[assignment]
    make_trainer(config, late := Recorder(count)).run()
    if dist.get_rank() == 0:
        assert len(compiled_ahead) == 1
        assert len(set(graphs)) > 1
    assert_same_weights(ahead.snapshots[-1], late.snapshots[-1])
    return ahead.snapshots[-1]


@pytest.mark.soak
def test_two_ranks_compile_ahead_without_waiting_for_each_other(make_config: MakeConfig, tmp_path: Path) -> None:
    base = make_config()
    stages = tuple(replace(stage, epochs=0.5) for stage in base.stages)
    config = replace(base, stages=stages, trainer=replace(base.trainer, compile=True))
    one, other = on_ranks(2, tmp_path, _compiled_ahead, config)
    assert all(torch.equal(value, other.model[name]) for name, value in one.model.items() if "running" not in name)


def test_a_graph_inside_ddp_is_cut_where_a_bucket_is_full(tmp_path: Path) -> None:
    """So the compiler inside DDP sees its buckets, and gradients are added up while the backward pass runs."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        torch._dynamo.reset()
        graphs: list[nn.Module] = []

        def backend(graph: nn.Module, inputs: list[torch.Tensor]) -> nn.Module:
            graphs.append(graph)
            return graph

        model = nn.Sequential(*(nn.Conv2d(256, 256, 3, padding=1) for _ in range(4)))  # 2.4 MB each
        net = data_parallel(model, torch.device("cpu"), images=(256, 4, 4))
        model.compile(backend=backend, dynamic=False)
        model(torch.zeros(1, 256, 4, 4))
        assert len(graphs) == 1  # by itself; the pass that settles the buckets came before
        net(torch.zeros(2, 256, 4, 4)).sum().backward()
        assert len(graphs) > 2
    finally:
        dist.destroy_process_group()

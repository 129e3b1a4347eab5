from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.policy import Progress
from tests.pipeline.conftest import MakeConfig
from tests.pipeline.test_trainer import Recorder, assert_same_weights, make_trainer


@pytest.mark.slow
def test_all_stages_are_compiled_before_the_first_step_and_nothing_of_it_stays(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dynamo and autograd tracing as they are; without the C++ compiler, which takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    base = make_config()
    config = replace(base, trainer=replace(base.trainer, compile=True, micro_batch_size=16))
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
    monkeypatch.setattr("pipeline.preparation.compile_ahead", lambda *_: None)
    graphs.clear()
    late.run()
    assert len(set(graphs)) > 1
    assert_same_weights(one.snapshots[-1], other.snapshots[-1])

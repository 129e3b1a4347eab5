from __future__ import annotations

import gzip
import json

import torch

from pipeline.training.profiler import SKIPPED_STEPS, WARM_UP_STEPS, StepProfiler


def test_the_steps_asked_for_are_traced_once() -> None:
    traces: list[bytes] = []
    profiler = StepProfiler(3, traces.append)
    weights = torch.ones(8, 8)
    for step in range(SKIPPED_STEPS + WARM_UP_STEPS + 3 + 5):
        torch.mm(weights, weights)
        profiler.step()
        assert len(traces) == (step >= SKIPPED_STEPS + WARM_UP_STEPS + 3 - 1)
    events = json.loads(gzip.decompress(traces[0]))["traceEvents"]
    assert sum(event["name"] == "aten::mm" for event in events) in (2, 3)  # a trace begins within its first step


def test_without_steps_nothing_is_traced() -> None:
    traces: list[bytes] = []
    profiler = StepProfiler(0, traces.append)
    for _ in range(20):
        profiler.step()
    assert traces == []

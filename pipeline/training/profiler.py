"""Traces some steps with torch.profiler."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED_STEPS, WARM_UP_STEPS = 4, 1
"""Steps that come before the traced ones: a worker group's first ones are not like the others."""


class StepProfiler:
    """Traces `num_steps` steps, once; with 0 it does nothing.

    Args:
        num_steps: steps in the trace.
        keep: takes the complete trace: gzipped JSON that Perfetto, Chrome and TensorBoard show.
    """

    def __init__(self, num_steps: int, keep: Callable[[bytes], None]) -> None:
        self._keep, self._left = keep, SKIPPED_STEPS + WARM_UP_STEPS + num_steps if num_steps else 0
        self._plan = schedule(wait=SKIPPED_STEPS, warmup=WARM_UP_STEPS, active=max(num_steps, 1), repeat=1)
        self._profile: profile | None = None

    def step(self) -> None:
        """Say that a step is over."""
        if self._left == 0:
            return
        if self._profile is None:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile = profile(activities=kinds, schedule=self._plan, on_trace_ready=self._ready)
            self._profile.start()
        self._left -= 1
        self._profile.step()
        if self._left == 0:
            self._profile.stop()

    def _ready(self, traced: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            traced.export_chrome_trace(str(path))
            self._keep(gzip.compress(path.read_bytes()))

"""Where the host waits for the device within a log interval, as PyTorch's debug mode reports it."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from datasets.loading.batch import Batch
from infra.cluster.code_package import ROOT
from jobs.benchmark.gpu.options import Options, with_stages
from jobs.benchmark.gpu.trainers import Rounds, first_device, make_trainer
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import Decision
from pipeline.schedule.policy import Progress

_MESSAGE = "synchronizing CUDA operation"


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitsRow:
    """One stage."""

    image_size: int
    steps: int
    waits: dict[str, int] | None
    """Number of waits by the line of this project that was the last one on the stack; None: not on a GPU, on which
    alone there is something to wait for."""


class SynchronizationWatch:
    """Counts the host's waits between `start` and `stop`.

    PyTorch reports operations that return something of the device to the host; a copy from memory that isn't pinned
    waits too and isn't reported.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._stack = ExitStack()

    def start(self) -> None:
        """Watch from here on."""
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = self._note
        if torch.cuda.is_available():
            self._stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        """End watching; nothing happens if it isn't on."""
        self._stack.close()

    def _note(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if _MESSAGE in str(message):
            self.found[_place() or f"{filename}:{lineno}"] += 1


def _place() -> str:
    """Return the last line of this project on the stack, outside of this module."""
    frames = [frame for frame in traceback.extract_stack() if _is_ours(Path(frame.filename))]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else ""


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(ROOT) and path != Path(__file__) and "site-packages" not in path.parts


class _WatchedRounds(Rounds):
    """Watches from one decision point to the last step before the next one, whose log row is to wait."""

    def __init__(self, rounds: int, steps: int) -> None:
        super().__init__(rounds, steps)
        self.watch, self._taken = SynchronizationWatch(), 0

    def stepped(self, batch: Batch, cursor: int) -> None:
        """End watching after the interval's last step."""
        super().stepped(batch, cursor)
        self._taken += 1
        if self._taken == self._steps:
            self.watch.stop()

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Begin watching again: the first interval isn't, in which algorithms are chosen."""
        decisions = super().decide(progress)
        self._taken = 0
        if not decisions:
            self.watch.start()
        return decisions


def measure_waits(config: TrainConfig, options: Options) -> list[WaitsRow]:
    """Watch one interval of every stage, with the recipe's mixing, on batches from memory."""
    rows = []
    for stage in config.stages:
        hooks = _WatchedRounds(1, options.steps)
        alone = with_stages(config, [stage], options.steps * 3)
        try:
            make_trainer(alone, hooks, in_memory=True).run()
        finally:
            hooks.watch.stop()
        found = dict(hooks.watch.found) if first_device().type == "cuda" else None
        rows.append(WaitsRow(image_size=stage.image_size, steps=options.steps, waits=found))
    return rows

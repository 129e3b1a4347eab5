"""Memory that runs out in a step: the run continues from its last state, with smaller passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jobs.benchmark.gpu.options import Options, with_stages
from jobs.benchmark.gpu.trainers import Rounds, clear, make_trainer
from pipeline.config import TrainConfig
from pipeline.training.memory import OutOfMemoryError
from pipeline.training.trainer import Trainer

_MOST_RESTARTS = 8
_SHARE = 0.6
"""Of what a step of the whole batch needs, so much is left to the second run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """The last stage."""

    image_size: int
    batch_size: int
    stand_in: bool
    """Whether passes of more than half the batch were refused by a stand-in, since a CPU's memory has no such limit."""
    survived: bool
    restarts: int
    """How often it began again, each time with smaller passes."""
    micro_batch: int
    """Images of a pass with which it got through."""
    restart_s: float
    """Seconds from the last error to the next step."""


def measure_memory(config: TrainConfig, options: Options) -> list[MemoryRow]:
    """Train the last stage with the whole batch in one pass and too little memory for it."""
    config = replace(config, trainer=replace(config.trainer, probe_memory="never", micro_batch_size=0))
    config = with_stages(config, config.stages[-1:], 3 * options.steps)
    (stage,) = config.stages
    with _too_little(config, options) as limit:
        survived, restarts, micro, restart_s = _survive(config, options, limit)
    return [
        MemoryRow(
            image_size=stage.image_size,
            batch_size=stage.batch_size,
            stand_in=not torch.cuda.is_available(),
            survived=survived,
            restarts=restarts,
            micro_batch=micro,
            restart_s=restart_s,
        )
    ]


def _survive(config: TrainConfig, options: Options, limit: Callable[[Trainer], None]) -> tuple[bool, int, int, float]:
    """Train as a run's worker groups do; return whether it got through, restarts, passes, seconds of a restart."""
    failed: list[tuple[int, int]] = []
    failed_s = time.perf_counter()
    for restarts in range(_MOST_RESTARTS + 1):
        hooks = Rounds(0, options.steps)
        trainer = make_trainer(config, hooks, in_memory=True)
        trainer.progress.lower_limits(failed, 1)
        limit(trainer)
        try:
            trainer.run()
        except OutOfMemoryError as error:
            failed.append((error.stage, error.limit))
            failed_s = time.perf_counter()
        else:
            micro = int(trainer.state.stage_results[0]["micro_batch"])
            return True, restarts, micro, hooks.started_s - failed_s if restarts else 0.0
        del trainer  # with all that the failed pass has kept
        clear()
    return False, _MOST_RESTARTS, failed[-1][1], 0.0


@contextmanager
def _too_little(config: TrainConfig, options: Options) -> Iterator[Callable[[Trainer], None]]:
    """Take memory away for as long as it lasts; yields what limits a trainer where the device can't be."""
    if not torch.cuda.is_available():
        yield lambda trainer: _refuse(trainer.learner.model, config.stages[0].batch_size // 2)
        return
    torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(config, Rounds(0, options.steps), in_memory=True)
    trainer.run()
    del trainer
    needed, there = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    clear()
    torch.cuda.set_per_process_memory_fraction(_SHARE * needed / there)
    try:
        yield lambda trainer: None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _refuse(model: nn.Module, most: int) -> None:
    """Have a model run out of memory in a training pass of more than so many images."""

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and len(inputs[0]) > most:
            raise torch.OutOfMemoryError(f"a stand-in for memory: {len(inputs[0])} images are more than {most}")

    model.register_forward_pre_hook(check)

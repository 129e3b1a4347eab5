"""Before a run's first step: find the micro-batch that fits into memory, and compile the model for all stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from torch import Tensor

from pipeline.schedule.stages import TrainingStage
from pipeline.training.inputs import StepInputs
from pipeline.training.learner import Learner
from pipeline.training.memory import micro_batch, stage_limits
from pipeline.training.prefetch import Feed
from pipeline.training.progress import TrainingProgress
from pipeline.training.transfer import Transfer

log = logging.getLogger(__name__)

Heartbeat = Callable[[], None]


def prepare(
    progress: TrainingProgress, learner: Learner, feed: Feed, last_stage: int | None, heartbeat: Heartbeat
) -> None:
    """Make ready for the stages from the one that is on to `last_stage` (None: the schedule's last).

    `heartbeat` is called around each pass and each compilation.
    """
    fit_into_memory(progress, learner, feed, heartbeat)
    if progress.config.trainer.compile:
        compile_ahead(progress, learner, feed.world_size, last_stage, heartbeat)
    heartbeat()


def fit_into_memory(progress: TrainingProgress, learner: Learner, feed: Feed, heartbeat: Heartbeat) -> None:
    """Look for the largest pass that fits, once in a run: what is found is part of its state.

    Raises:
        MemoryLimitError: not even one sample fits.
    """
    config, trainer, device = progress.config, progress.config.trainer, learner.device
    on = trainer.probe_memory == "always" or (trainer.probe_memory == "auto" and device.type == "cuda")
    if not on or trainer.micro_batch_size or progress.state.micro_limits or progress.span is None:
        return
    stage = _largest(config.stages[-1])
    learner.regularize(stage)  # set anew when a stage begins
    batch = next(iter(feed.loader(replace(progress.schedule.spans[-1], stage=stage, start=0))))
    transfer = Transfer(device)
    with transfer.on_device(batch):  # in a step the next batch is on the device too
        pass
    with transfer.on_device(batch) as there:
        inputs = StepInputs(there, stage, config, learner.task, device)

        def first(count: int) -> tuple[Tensor, Tensor]:
            heartbeat()
            return inputs.part(slice(count))

        fits = learner.probe(first, len(inputs))
    progress.state.micro_limits = stage_limits(config.stages, fits)


def _largest(stage: TrainingStage) -> TrainingStage:
    """Return a stage whose steps all have the largest images that `stage` may have."""
    return replace(stage, image_size=max(stage.image_sizes), random_sizes=(), random_size_share=0.0)


def compile_ahead(
    progress: TrainingProgress, learner: Learner, world_size: int, last_stage: int | None, heartbeat: Heartbeat
) -> None:
    """Compile the model for all stages that are to come, before the first step: later none waits for it.

    Not during training: the compiler looks at the live model, whose dropout and buffers a step uses too. Strengths
    that a closed loop chooses later, or a new batch size, are compiled when their stage begins.
    """
    spans = progress.schedule.spans[progress.stage : None if last_stage is None else last_stage + 1]
    started, shapes = time.perf_counter(), 0
    for span in spans:
        learner.regularize(span.stage)
        samples = span.stage.batch_size // world_size
        micro = micro_batch(samples, progress.micro_limit_of(span.index))
        for size, count in product(span.stage.image_sizes, sorted({micro, samples % micro or micro})):
            heartbeat()
            learner.compile_for(size, count, count / samples)
            shapes += 1
        heartbeat()
        learner.compile_evaluation(progress.config.trainer.eval_size(span.stage))
        shapes += 1
    log.info("compiled for %d shapes in %.0f s", shapes, time.perf_counter() - started)

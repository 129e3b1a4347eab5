"""Trainers without a cluster, their batches from memory if need be, and what a log interval of them took."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from datasets.loading.batch import Batch
from datasets.loading.processes import limit_blas
from datasets.shards.manifest import DatasetManifest
from jobs.benchmark.gpu.options import manifests
from model.factory import build_model
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import Decision, Stop
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan, TrainingStage
from pipeline.training.device import choose_algorithms
from pipeline.training.hooks import TrainHooks
from pipeline.training.prefetch import Feed
from pipeline.training.task import build_task
from pipeline.training.trainer import Trainer

KEPT_BATCHES = 4


def first_device() -> torch.device:
    """Return the first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def begin(config: TrainConfig) -> None:
    """Set this process up as a worker does."""
    torch.set_num_threads(config.cluster.threads_per_worker)
    limit_blas(config.cluster.threads_per_worker)
    choose_algorithms(deterministic=config.trainer.deterministic)


def make_trainer(config: TrainConfig, hooks: TrainHooks, *, in_memory: bool = False) -> Trainer:
    """Return the trainer of a run's only rank, from fresh weights; `in_memory`: its loader makes a few batches only."""
    train, val = manifests(config)
    torch.manual_seed(config.seed)
    task = build_task(config.task, train.classes)
    model = build_model(config.model, num_classes=task.num_outputs)
    device = first_device()
    trainer = Trainer(
        config, model=model, task=task, train=train, val=val, hooks=hooks, metadata=RunMetadata(), device=device
    )
    if in_memory:
        trainer.feed = FromMemory(config, train, device)
    return trainer


class FromMemory(Feed):
    """Gives the first batches of a stage over and over: training that waits for no loader."""

    def __init__(self, config: TrainConfig, manifest: DatasetManifest, device: torch.device) -> None:
        super().__init__(config, manifest, 0, 1, device)
        self._kept: dict[TrainingStage, list[Batch]] = {}

    def loader(self, span: StageSpan) -> Iterable[Batch]:
        """Return as many batches as the span has steps."""
        if span.stage not in self._kept:
            with closing(iter(super().loader(span))) as stream:  # type: ignore[type-var]
                self._kept[span.stage] = list(islice(stream, KEPT_BATCHES))
        return islice(cycle(self._kept[span.stage]), span.num_steps)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear() -> None:
    """Give back the memory of what isn't used any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """So many steps of one contender."""

    step_s: float
    """Of a step, with its share of the wait for the device at the interval's end."""
    host_s: float
    """Of a step, until all its work was given to the device: as long as `step_s`, the host never runs ahead."""


class Rounds(TrainHooks):
    """Times the log intervals of a run and stops it after the last; after each, others have their turn."""

    def __init__(self, rounds: int, steps: int) -> None:
        self.timed: list[Interval] = []
        self.started_s = 0.0
        self.between: Callable[[], None] = lambda: None
        self._rounds, self._steps = rounds, steps
        self._began_s = self._given_s = time.perf_counter()

    def stage_started(self, span: StageSpan, images: torch.Tensor) -> None:
        """Note when the first step begins: what was made ready for it is done."""
        self.started_s = time.perf_counter()

    def stepped(self, batch: Batch, cursor: int) -> None:
        """Note when the host is done with a step."""
        self._given_s = time.perf_counter()

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """Note the interval: its metrics are there, so the device has done all its steps."""
        if "train/images_per_s" in metrics:
            step_s, host_s = ((end - self._began_s) / self._steps for end in (time.perf_counter(), self._given_s))
            self.timed.append(Interval(step_s=step_s, host_s=host_s))

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Let the others have their turn, or stop."""
        self.between()
        self._began_s = time.perf_counter()
        return (Stop(),) if len(self.timed) > self._rounds else ()

    @property
    def intervals(self) -> list[Interval]:
        """All but the first, in which buffers were filled."""
        return self.timed[1:]

"""Whether a run that was stopped and resumed ends with the bits of one that wasn't, with `trainer.deterministic`."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from infra.storage.open import open_storage
from jobs.benchmark.gpu.options import Options, with_stages
from jobs.benchmark.gpu.trainers import begin, clear, make_trainer
from pipeline.checkpoint.format import Snapshot, read_checkpoint, write_checkpoint
from pipeline.checkpoint.tensors import pack, pack_nested
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import Checkpoint, Decision, Stop
from pipeline.schedule.policy import Progress
from pipeline.training.hooks import TrainHooks


@dataclass(frozen=True, kw_only=True, slots=True)
class DeterminismRow:
    """A run of two intervals, and the same cut between them."""

    image_size: int
    steps: int
    whole: str
    """SHA-256 of weights, moving average and optimizer state at the end."""
    resumed: str
    """The same of the run that was stopped, written, read and resumed."""
    equal: bool
    seconds: float
    """Of the whole run: what determinism costs shows beside the speed without it."""


class _Snapshots(TrainHooks):
    """Takes a snapshot at each log row; ends the run at the `last`-th."""

    def __init__(self, last: int) -> None:
        self.snapshots: list[Snapshot] = []
        self._last = last

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Save, and stop at the end."""
        return (Stop() if len(self.snapshots) + 1 == self._last else Checkpoint(),)

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Keep the state."""
        self.snapshots.append(snapshot())


def measure_determinism(config: TrainConfig, options: Options) -> list[DeterminismRow]:
    """Train the first stage whole and resumed, with the loader and all that the recipe does to images."""
    certain = replace(config, trainer=replace(config.trainer, deterministic=True))
    certain = with_stages(certain, config.stages[:1], options.steps * 3)
    begin(certain)
    try:
        began = time.perf_counter()
        whole = _trained(certain, 2)
        seconds = time.perf_counter() - began
        resumed = _trained(certain, 1, _stored(whole[0]))
    finally:
        begin(config)
    digests = digest(whole[-1]), digest(resumed[-1])
    return [
        DeterminismRow(
            image_size=config.stages[0].image_size,
            steps=2 * options.steps,
            whole=digests[0],
            resumed=digests[1],
            equal=digests[0] == digests[1],
            seconds=seconds,
        )
    ]


def _stored(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot as it is read from a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-") as folder:
        storage = open_storage(folder)
        return read_checkpoint(storage, write_checkpoint(storage, snapshot))


def _trained(config: TrainConfig, intervals: int, start: Snapshot | None = None) -> list[Snapshot]:
    """Train for so many log intervals, from a snapshot if there is one; return the snapshot at the end of each."""
    hooks = _Snapshots(intervals)
    trainer = make_trainer(config, hooks)
    if start is not None:
        trainer.restore(start)
    trainer.run()
    del trainer
    clear()
    return hooks.snapshots


def digest(snapshot: Snapshot) -> str:
    """Return the SHA-256 of a snapshot's tensors."""
    total = hashlib.sha256()
    for buffers in (pack(snapshot.model), pack(snapshot.ema or {}), pack_nested(snapshot.optimizer)):
        for data in buffers:
            total.update(data)
    return total.hexdigest()

"""One rank of a small run, without a cluster, that watches itself as a worker does and resumes from its checkpoints.

Arguments: folder of the data, of the run's storage, longest time without a heartbeat in seconds, cursor at which to say
so and to wait for a line (0: none).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from datasets.loading.batch import Batch
from infra.storage.open import open_storage
from pipeline.checkpoint.format import Snapshot, latest_valid, write_checkpoint
from pipeline.run.stacks import Stacks
from pipeline.run.watchdog import Watchdog, end_stuck_rank
from pipeline.training.hooks import TrainHooks
from tests.support.configs import small_config
from tests.support.trainers import make_trainer


class Hooks(TrainHooks):
    """Writes checkpoints, and holds the run up once."""

    def __init__(self, folder: str, wait_at: int, heartbeat: Callable[[], None]) -> None:
        self.storage, self.wait_at, self.beat = open_storage(folder), wait_at, heartbeat

    def heartbeat(self) -> None:
        self.beat()

    def stepped(self, batch: Batch, cursor: int) -> None:
        if self.wait_at and cursor >= self.wait_at:
            self.wait_at = 0
            print("here", flush=True)
            sys.stdin.readline()

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        write_checkpoint(self.storage, snapshot())


def main(data: str, folder: str, timeout_s: str, wait_at: str) -> None:
    torch.set_num_threads(1)
    config = small_config(Path(data), folder)
    config = replace(config, data=replace(config.data, loader_workers=1))
    storage = open_storage(folder)
    stuck = partial(end_stuck_rank, storage, 0, float(timeout_s), Stacks(), partial(print, flush=True))
    with Watchdog(float(timeout_s), stuck) as watchdog:
        trainer = make_trainer(config, Hooks(folder, int(wait_at), watchdog.heartbeat))
        resume = latest_valid(storage)[0]
        if resume is not None:
            trainer.restore(resume)
            print("resumes at", resume.state.cursor, flush=True)
        trainer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A run's control plane with simulated ranks over hours of simulated time.

The controller, the lease, the tracker and the checkpoints' writer are the product's own, in one process, with storage
in a folder and an MLflow server in a process of its own. Simulated are the ranks, which only report, and the clock.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import psutil

from infra.storage.lease import RENEW_S, Lease
from infra.storage.local import LocalStorage
from infra.tracking.config import TrackingConfig
from infra.tracking.tracker import Tracker
from jobs.benchmark.controller import plan_for, progress_at
from jobs.benchmark.growth_servers import Mlflow, asked, served
from pipeline.checkpoint.async_writer import Saver
from pipeline.checkpoint.catalog import BestRule, describe_checkpoints
from pipeline.checkpoint.format import Snapshot, write_checkpoint
from pipeline.checkpoint.head import claim, commit, read_head, replace_head, unique_key
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.pruning import prune
from pipeline.checkpoint.state import TrainState
from pipeline.control.controller import StageController
from pipeline.run.checkpoint_listener import CheckpointListener
from pipeline.run.controller_client import ControllerClient
from pipeline.training_config import CheckpointConfig

TICK_S = 10.0
"""Simulated seconds between two reports of a rank, two decisions, and two records of a node's load."""
OPERATORS = 10
"""Requests for the status, in a tick."""
SAVE_TICKS = 6
"""Ticks between two checkpoints."""
RANKS_PER_NODE = 8
LOAD = {f"gpu_{number}_utilization_percentage": 90.0 for number in range(8)} | {
    f"value_{number}": 1.0 for number in range(12)
}
"""What a node of eight GPUs tells, about."""
BATCH = 4096


@dataclass(slots=True)
class Watch:
    """CPU seconds by what they went into."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, what: str, clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
        """Add what the block takes."""
        began = clock()
        yield
        self.cpu_s[what] = self.cpu_s.get(what, 0.0) + clock() - began


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlCost:
    """What the control plane of a run with so many ranks has cost."""

    ranks: int
    cpu_s: dict[str, float]
    """CPU seconds per simulated hour, by what they went into."""
    rss_mb: tuple[float, ...]
    """Resident memory of the process at each eighth of the time, in MB (10^6 bytes)."""
    values: int
    """Metric values that MLflow has got."""
    doubled: int
    """Those of a step that their metric had reached before: none, if each arrives exactly once."""


def control_cost(ranks: int, hours: float) -> ControlCost:
    """Simulate so many hours of a run of so many ranks."""
    with (
        tempfile.TemporaryDirectory(prefix="growth-") as folder,
        served(Mlflow, artifacts=f"file://{folder}/a") as (
            url,
            server,
        ),
    ):
        run = _Run(ranks, Path(folder), url)
        ticks = max(8, round(hours * 3600 / TICK_S))
        rss = []
        for tick in range(ticks):
            run.tick(tick)
            if (tick + 1) % (ticks // 8) == 0:
                gc.collect()
                rss.append(psutil.Process().memory_info().rss / 1e6)
        run.close()
        counts, doubled = cast(dict[str, int], asked(server, "points")), cast(int, asked(server, "repeated"))
    per_hour = 3600 / (ticks * TICK_S)
    costs = {what: value * per_hour for what, value in run.watch.cpu_s.items()}
    return ControlCost(ranks=ranks, cpu_s=costs, rss_mb=tuple(rss[:8]), values=sum(counts.values()), doubled=doubled)


class _Run:
    """A run whose ranks are simulated."""

    def __init__(self, ranks: int, folder: Path, tracking_uri: str) -> None:
        self.ranks, self.watch, self.now_s = ranks, Watch(), 0.0
        storage = LocalStorage(folder / "run")
        self.lease = Lease(storage)
        self.lease.take()
        self.controller = StageController(plan_for(ranks), lambda segment: None, clock=lambda: self.now_s)
        for rank in range(ranks):
            self.controller.join(rank, f"node-{rank // RANKS_PER_NODE}", "", ranks)
        self.nodes = [f"node-{node}" for node in range(1, ranks // RANKS_PER_NODE)]
        writer = claim(storage, self.lease, 1)
        config = TrackingConfig(uri=tracking_uri, system_metrics=False)
        self.tracker = Tracker(config, "growth", storage=storage, epoch=writer.epoch)
        # The listener's calls, without an actor between.
        client = cast(ControllerClient, self.controller)
        listener = CheckpointListener(client, self.lease, self.tracker, storage, lambda rows: ())
        self.saver = Saver(storage, CheckpointConfig(), listener, writer=writer)
        self._flush()  # and so imports MLflow

    def tick(self, number: int) -> None:
        """Have every rank do what it does in so many seconds."""
        self.now_s += TICK_S
        cursor, watch = number * BATCH, self.watch
        with watch.time("reports of all ranks"):
            for rank in range(self.ranks):
                self.controller.report(rank, cursor, 0.01)
        with watch.time("loads of all nodes"):
            for node in self.nodes:
                self.controller.loaded(node, LOAD)
        with watch.time("status for operators"):
            for _ in range(OPERATORS):
                self.controller.status().to_json()
        progress = replace(progress_at(cursor), num_workers=self.ranks)
        with watch.time("decisions"):
            reply = self.controller.decide(progress)
        with watch.time("rank 0's training thread"):
            for node, values in reply.loads:
                self.tracker.log_load(node, values)
            self.tracker.log_metrics(progress.metrics, step=cursor)
        with watch.time("lease"):
            for _ in range(round(TICK_S / RENEW_S)):
                self.lease.renew()
        if number % SAVE_TICKS == SAVE_TICKS - 1:
            self._send()
            with watch.time("checkpoints", time.process_time):
                self.saver.take(_snapshot(cursor))
                self.saver.wait()
                self._flush()

    def close(self) -> None:
        """End the record."""
        self._send()
        self.tracker.close()

    def _send(self) -> None:
        with self.watch.time("MLflow rows", time.process_time):
            self._flush()

    def _flush(self) -> None:
        while not self.tracker.flush(60):
            if self.tracker.problem:
                raise RuntimeError(self.tracker.problem)


def checkpoint_cost(count: int) -> float:
    """Return the CPU seconds of one more checkpoint of a run that keeps so many: what it writes and lists."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        storage = LocalStorage(folder)
        lease = Lease(storage)
        lease.take()
        writer = claim(storage, lease, 1)
        keys = [unique_key(number, writer.epoch) for number in range(count)]
        first = write_checkpoint(storage, _snapshot(0), key=keys[0])
        for key in keys[1:]:
            shutil.copytree(Path(folder, first), Path(folder, key))
        head, etag = read_head(storage)
        assert head is not None
        replace_head(storage, replace(head, keys=tuple(keys)), etag)
        key, began = unique_key(count, writer.epoch), time.process_time()
        write_checkpoint(storage, _snapshot(count), key=key)
        commit(storage, key, writer)
        prune(storage, count, BestRule("val/accuracy"), written=key, writer=writer)
        assert len(describe_checkpoints(storage)) == count
        return time.process_time() - began


def _snapshot(cursor: int) -> Snapshot:
    return Snapshot(TrainState(cursor=cursor), {}, None, {}, RunMetadata())

"""Collects what the workers report, for status requests; bounded in memory for runs of any length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from infra.redact import redacted
from pipeline.control.queue import Place
from pipeline.control.run_status import (
    CheckpointStatus,
    GroupStatus,
    Phase,
    QuietRank,
    RunIdentity,
    RunStatus,
    WaitingRank,
)
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan, worker_range

MAX_NOTES = 100
"""Lines for the user that are kept."""


class _Worker(NamedTuple):
    """The newest that a rank has told."""

    node: str
    cursor: int
    wait_share: float
    heard_s: float


class StatusBoard:
    """What a run's controller has heard, and when. Its methods are called with the controller's lock held."""

    def __init__(self, run: RunIdentity, clock: Callable[[], float] = time.time) -> None:
        self.run, self._clock = run, clock
        self.progress: Progress | None = None
        self.seen: dict[str, float] = {}
        self.checkpoint: CheckpointStatus | None = None
        self.checkpoint_waits = 0
        self.notes: list[str] = []
        self.noted = 0
        self.heard_s = self._clock()
        self._workers: dict[int, _Worker] = {}
        self._pace_s = 0.0
        self._decided_s = 0.0

    def new_group(self, world_size: int) -> None:
        """Another worker group has started: forget workers that it doesn't have; of the others some have joined."""
        self._workers = {rank: worker for rank, worker in self._workers.items() if rank < world_size}
        self._decided_s = 0.0

    def joined(self, rank: int, node: str) -> None:
        """A rank has started on a node."""
        self._workers[rank] = _Worker(node, 0, 0.0, self._clock())

    def reported(self, rank: int, cursor: int, wait_share: float) -> None:
        """A rank has told how far it is."""
        known = self._workers.get(rank)
        self._workers[rank] = _Worker(known.node if known else "", cursor, wait_share, self._clock())

    def decided(self, progress: Progress) -> None:
        """Rank 0 has come to a decision point."""
        now = self._clock()
        if self._decided_s and not progress.paused:
            self._pace_s = now - self._decided_s
        self.progress, self.heard_s, self._decided_s = progress, now, now
        self.seen |= progress.metrics

    def saved(self, uri: str, cursor: int) -> None:
        """A checkpoint is complete."""
        self.checkpoint = CheckpointStatus(uri=uri, cursor=cursor, saved_s=self._clock(), age_s=0.0)

    def on_resume(self, source: str, cursor: int, taken_s: float | None) -> None:
        """A group begins at a checkpoint, of this Unix time where it is known."""
        if self.checkpoint is None or self.checkpoint.cursor != cursor:
            self.checkpoint = CheckpointStatus(uri=source, cursor=cursor, saved_s=taken_s, age_s=None)

    def note(self, line: str) -> None:
        """Something that the user should read; the same line again is not repeated."""
        line = redacted(line)
        if line not in self.notes:
            self.notes = [*self.notes, line][-MAX_NOTES:]
            self.noted += 1

    @property
    def next_decision_s(self) -> float:
        """Seconds until the next decision point, as it was between the last ones; 0: not known yet."""
        if not self._pace_s:
            return 0.0
        return max(0.0, self._pace_s - (self._clock() - self._decided_s))

    def status(
        self,
        *,
        phase: Phase,
        error: str,
        recoveries: int,
        pending: list[str],
        started_s: float,
        place: Place,
        waits: str,
    ) -> RunStatus:
        """Return all of it, with the time that is left for each stage, and what the controller itself knows."""
        return RunStatus(
            run=self.run,
            progress=self.progress,
            metrics=dict(self.seen),
            left_s=tuple(seconds_left(self.progress, self.seen)) if self.progress else (),
            checkpoint=self._checkpoint_status(),
            checkpoint_waits=self.checkpoint_waits,
            workers=self._group_status(),
            age_s=self._clock() - self.heard_s,
            notes=tuple(self.notes),
            noted=self.noted,
            phase=phase,
            error=error,
            recoveries=recoveries,
            pending=tuple(pending),
            started_s=started_s,
            queued_s=place.since_s,
            needs=dict(place.needs),
            waits=waits,
        )

    def _checkpoint_status(self) -> CheckpointStatus | None:
        saved = self.checkpoint
        if saved is None or saved.saved_s is None:
            return saved
        return replace(saved, age_s=self._clock() - saved.saved_s)

    def _group_status(self) -> GroupStatus:
        now, workers = self._clock(), self._workers
        if not workers:
            return GroupStatus()
        behind = min(workers, key=lambda rank: (workers[rank].cursor, workers[rank].heard_s))
        waits = max(workers, key=lambda rank: workers[rank].wait_share)
        return GroupStatus(
            count=len(workers),
            nodes=len({worker.node for worker in workers.values()}),
            quietest=QuietRank(rank=behind, node=workers[behind].node, age_s=now - workers[behind].heard_s),
            waits_most=WaitingRank(rank=waits, node=workers[waits].node, wait_share=workers[waits].wait_share),
        )


def seconds_left(progress: Progress, seen: dict[str, float]) -> list[float]:
    """Estimate the seconds that each stage has still to go; of the stages before, 0.

    The current stage continues at its pace so far, evaluations included. In the others a sample costs as much more as
    its image has more pixels, over as many more workers as they have.
    """
    result = progress.stage_results[progress.stage] if progress.stage < len(progress.stage_results) else {}
    took_s = result.get("train_s", 0.0) + result.get("eval_s", 0.0)
    rate = result.get("samples", 0) / took_s if took_s else seen.get("train/images_per_s", 0.0)
    if not rate:
        return []
    return [_samples_left(span, progress) * _cost(span, progress) / rate for span in progress.spans]


def _samples_left(span: StageSpan, progress: Progress) -> int:
    return max(0, span.stop - max(span.start, progress.cursor)) if span.index >= progress.stage else 0


def _cost(span: StageSpan, progress: Progress) -> float:
    """What a sample of a stage costs, relative to one of the current stage."""
    workers = [_workers(one, progress) for one in (span, progress.span)]
    # Of images that aren't square all have more pixels by the same factor.
    return span.stage.mean_pixels(1.0) / progress.span.stage.mean_pixels(1.0) * workers[1] / workers[0]


def _workers(span: StageSpan, progress: Progress) -> int:
    return worker_range(span.stage.num_workers)[1] or progress.num_workers

"""`StageController`: owns a run. A plain class; it becomes an actor in one line, at the edge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from pipeline.lease import Lease
from pipeline.policy import Decision, Progress, Request, decide
from pipeline.stages import TrainingStage

MAX_NOTES = 100
"""Lines for the user that are kept."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The longest row of stages with the same worker count: one worker group, no restart inside."""

    first: int
    last: int
    num_workers: int | tuple[int, int]
    """Workers, or a range of them."""


def segments(stages: tuple[TrainingStage, ...], num_workers: int | tuple[int, int]) -> list[Segment]:
    """Cut stages into segments; `num_workers` is for stages that don't name their own number."""
    rows = []
    for workers, group in groupby(enumerate(stages), key=lambda item: item[1].num_workers or num_workers):
        indices = [index for index, _ in group]
        rows.append(Segment(indices[0], indices[-1], workers))
    return rows


FitSegment = Callable[[Segment], None]
"""Runs one worker group to the end of a segment; raises if it can't."""
RecordFailure = Callable[[], None]
"""Ends the run's record as one of a failed run; workers, which write the record, may all be dead."""


class StageController:
    """Runs a run's segments one after the other, decides at decision points, answers questions meanwhile."""

    def __init__(
        self,
        stages: tuple[TrainingStage, ...],
        num_workers: int | tuple[int, int],
        fit: FitSegment,
        first_stage: int = 0,
        lease: Lease | None = None,
        record_failure: RecordFailure = lambda: None,
    ) -> None:
        self._segments = [segment for segment in segments(stages, num_workers) if segment.last >= first_stage]
        self._fit, self._first_stage, self._lease, self._record_failure = fit, first_stage, lease, record_failure
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._progress: Progress | None = None
        self._phase, self._error, self._stopped, self._taken_over = "starting", "", False, False
        self._last: Decision | None = None
        self._groups = self._starts = 0
        self._notes: list[str] = []
        self._noted = 0
        self._heard = time.time()
        self._started_s = 0.0
        self._reached = -1
        self._environment = ""
        if lease is not None:
            lease.keep(self.lost)

    def run(self) -> dict[str, Any]:
        """Train all segments; return the final status.

        Raises:
            RuntimeError: a worker group gave up, or a worker met an error that trying again doesn't cure.
        """
        try:
            self._run_segments()
        except Exception as error:
            self.failed(last_line(error))
            self._close_record()
            raise RuntimeError(self._error) from error
        finally:
            if self._lease is not None:
                self._lease.release()
        self._phase = "stopped" if self._stopped else "finished"
        return self.status()

    def _run_segments(self) -> None:
        for segment in self._segments:
            self._last = None
            while self._last in (None, Decision.NEW_GROUP):
                self._last = Decision.NEXT_STAGE  # unless a worker says otherwise
                self._groups += 1
                self._fit(segment)
                if self._error:
                    raise RuntimeError(self._error)
                if self._stopped:
                    return

    def _close_record(self) -> None:
        if self._taken_over:  # the record is another submission's now
            return
        try:
            self._record_failure()
        except Exception as error:  # it must not hide why the run failed
            self.note(f"the run's record could not be closed: {last_line(error)}")

    # From operators --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what is known of the run: phase, newest progress, recoveries from failures, seconds since news, notes,
        and when (Unix time) the newest worker group began.
        """
        with self._lock:
            progress = asdict(self._progress) if self._progress else None
            age_s = time.time() - self._heard
            recoveries = max(0, self._starts - self._groups)
            return {"phase": self._phase, "progress": progress, "recoveries": recoveries, "age_s": age_s} | {
                "notes": list(self._notes),  # the last ones, of `noted` in all
                "noted": self._noted,
                "started_s": self._started_s,
            }

    def advance(self) -> str:
        """Ask for the next stage at the next decision point; returns what will happen."""
        return self._ask(Decision.NEXT_STAGE)

    def stop(self) -> str:
        """Ask for a checkpoint and the run's end at the next decision point; returns what will happen."""
        return self._ask(Decision.STOP)

    def _ask(self, decision: Decision) -> str:
        with self._lock:
            stage = self._progress.stage if self._progress else self._first_stage
            self._requests.append(Request(decision, stage))
        return f"{decision.value} at the next decision point (stage {stage + 1})"

    # From rank 0 -----------------------------------------------------------------------------------------------------

    def joined(self, rank: int, environment: str = "") -> str:
        """A rank has started, in this runtime environment. Returns the error that ended the run, if one did: then it
        must not train.
        """
        with self._lock:
            self._environment = environment
            if not self._error and rank == 0:
                self._starts += 1
                self._started_s = time.time()
                self._requests = [asked for asked in self._requests if asked.decision is not Decision.NEW_GROUP]
                self._phase = "training"
            return self._error

    def ended(self, decision: Decision) -> None:
        """A group has ended as it was told to; with NEW_GROUP the segment goes on in another one."""
        self._last = decision

    def can_grow(self, num_workers: int, possible: int) -> None:
        """The cluster has room for more workers than a group has: let it end with a checkpoint."""
        with self._lock:
            if all(asked.decision is not Decision.NEW_GROUP for asked in self._requests):
                self._requests.append(Request(Decision.NEW_GROUP, 0))
        self.note(f"grows from {num_workers} to {possible} workers at the next decision point")

    def environment(self) -> str:
        """Return the runtime environment of the run's workers."""
        return self._environment

    def reached(self) -> int:
        """Return the highest cursor that was reported so far, -1 before any."""
        return self._reached

    def error(self) -> str:
        """Return the error that ended the run, or an empty text."""
        return self._error

    def taken_over(self) -> bool:
        """Say whether another submission trains this run now: then nothing of it may be written any more."""
        return self._taken_over

    def note(self, line: str) -> None:
        """Something that the user should read; the same line again is not repeated."""
        with self._lock:
            if line not in self._notes:
                self._notes = [*self._notes, line][-MAX_NOTES:]
                self._noted += 1

    def decide(self, progress: Progress) -> Decision:
        """Take rank 0's progress and say what all ranks do next."""
        with self._lock:
            self._progress, self._heard = progress, time.time()
            self._reached = max(self._reached, progress.cursor)
            decision = Decision.STOP if self._error else decide(progress, self._requests)
            self._stopped |= decision is Decision.STOP
            if decision is Decision.CHECKPOINT:
                self._requests = [request for request in self._requests if request.decision is not decision]
            return decision

    def failed(self, message: str) -> None:
        """A worker met an error that trying again doesn't cure: the run ends with this message."""
        with self._lock:
            self._error = self._error or message
            self._phase = "failed"

    def lost(self, message: str) -> None:
        """Another submission has taken the run over: this one ends, and writes nothing more."""
        self._taken_over = True
        self.failed(message)


def last_line(error: BaseException) -> str:
    """Return the innermost message of an error that came through Ray: its last line, after the tracebacks."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(cause)

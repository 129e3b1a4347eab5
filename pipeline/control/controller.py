"""`StageController`: owns a run. A plain class; it becomes an actor in one line, at the edge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from infra.redact import last_line, redacted
from infra.storage.lease import Lease
from infra.timeouts import call_with_timeout
from pipeline.control.journal import Journal
from pipeline.control.node_requests import NodesAhead
from pipeline.control.pending import PendingDecisions
from pipeline.control.plan import RunPlan
from pipeline.control.queue import WAITING, Place, QueuePlace
from pipeline.control.replies import DecisionReply, JoinReply
from pipeline.control.run_status import Phase, RunStatus
from pipeline.control.status import StatusBoard
from pipeline.schedule.decisions import PAUSE_POLL_S, Decision, NewGroup, NextStage, Resume, Stop
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import Segment

FitSegment = Callable[[Segment], None]
"""Runs one worker group to the end of a segment; raises if it can't."""
Observe = Callable[[Callable[[], dict[str, Any]]], None]
"""Is given the status as JSON values when the run begins, to ask for it from time to time in a thread of its own."""
RecordFailure = Callable[[str], None]
"""Ends the run's record as one of a failed run, at the MLflow server that operators named, if they did; workers, which
write the record, may all be dead."""

RECORD_TIMEOUT_S = 180.0
"""How long a failed run's record and lease may take to be closed, before its driver is told of the failure."""
_ASSUMED = NextStage()
"""How a group has ended if no worker says it."""


class StageController:
    """Runs a run's segments one after the other, decides at decision points, answers questions meanwhile.

    Args:
        plan: what is to be trained.
        fit: runs one worker group to the end of a segment.
        lease: of the run; the controller renews it and gives it back.
        journal: decisions that a run which went back repeats.
        nodes_ahead: requests the next segment's nodes; None: nobody is asked for them.
        queue: the run's place in its cluster's queue; None: it waits for nobody.
        record_failure: ends the run's record as one of a failed run.
        observe: is given the status when the run begins.
        clock: the time that the status tells, in seconds.
    """

    def __init__(
        self,
        plan: RunPlan,
        fit: FitSegment,
        *,
        lease: Lease | None = None,
        journal: Journal | None = None,
        nodes_ahead: NodesAhead | None = None,
        queue: QueuePlace | None = None,
        record_failure: RecordFailure = lambda uri: None,
        observe: Observe = lambda status: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._plan, self._fit, self._lease = plan, fit, lease
        self._record_failure, self._observe, self._clock = record_failure, observe, clock
        self._board = StatusBoard(plan.identity, clock)
        self._queue = queue or QueuePlace(Place(name="", since_s=time.time(), needs={}), None)
        self._pending = PendingDecisions(plan.stages, plan.rules, journal or Journal(), self._board.note)
        self._nodes_ahead = nodes_ahead
        self._lock = threading.Lock()
        self._phase: Phase = "starting"
        self._error, self._taken_over = "", False
        self._stop: Stop | None = None
        self._stage = plan.first_stage
        self._last: Decision | None = None
        self._groups = self._starts = 0
        self._started_s, self._reached, self._environment, self._tracking_uri = 0.0, -1, "", ""
        self._out_of_memory: list[tuple[int, int]] = []
        self._loads: dict[str, dict[str, float]] = {}
        if lease is not None:
            lease.keep(self.lost)

    def run(self) -> RunStatus:
        """Train all segments; return the final status.

        Raises:
            RuntimeError: a worker group gave up, or a worker met an error that trying again doesn't cure.
        """
        self._observe(lambda: self.status().to_json())
        try:
            self._await_turn()
            self._run_segments()
        except Exception as error:
            self.failed(last_line(error))
            self._close_record()
            raise RuntimeError(self._error) from error
        finally:
            if self._lease is not None:
                with suppress(TimeoutError):  # it expires
                    call_with_timeout(RECORD_TIMEOUT_S, self._lease.release)
        done = isinstance(self._last, NextStage) and self._last is not _ASSUMED
        self._phase = "stopped" if self._stop and not done else "finished"
        return self.status()

    def _await_turn(self) -> None:
        """Wait in the cluster's queue until it is the run's turn, or until it is stopped there.

        Raises:
            RuntimeError: the run was lost meanwhile.
        """
        self._enter("queued")
        self._queue.wait(lambda: bool(self._stop or self._error))
        self._enter("starting")
        if self._error:
            raise RuntimeError(self._error)

    def _enter(self, phase: Phase) -> None:
        with self._lock:
            self._phase = self._phase if self._error else phase

    def _run_segments(self) -> None:
        for segment in self._plan.segments if not self._stop else ():
            self._last = None
            while self._last is None or isinstance(self._last, NewGroup):
                self._last = _ASSUMED
                self._groups += 1
                self._fit(segment)
                if self._error:
                    raise RuntimeError(self._error)
                if self._stop:
                    return

    def _close_record(self) -> None:
        if self._taken_over:  # the record is another submission's now
            return
        try:
            # Whatever hangs, as storage may, the driver is told.
            call_with_timeout(RECORD_TIMEOUT_S, self._record_as_failed)
        except Exception as error:  # it must not hide why the run failed
            self.note(f"the run's record could not be closed: {last_line(error)}")

    def _record_as_failed(self) -> None:
        if self._lease is not None:
            self._lease.check()  # another submission may have it before this one's next renewal finds that out
        self._record_failure(self._tracking_uri)

    # From operators --------------------------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """Return what is known of the run: phase, newest progress, recoveries from failures, ..."""
        with self._lock:
            return self._board.status(
                phase="paused" if self._pending.paused and self._phase == "training" else self._phase,
                error=self._error,
                recoveries=max(0, self._starts - self._groups),
                pending=self._pending.pending,
                started_s=self._started_s,
                place=self._queue.place,
                waits=self._queue.waits if self._phase in WAITING else "",
            )

    def ask(self, decision: Decision) -> str:
        """Ask for a decision; returns at once what will happen. It is carried out at the next decision point."""
        with self._lock:
            if self._phase in ("failed", "finished", "stopped") or self._stop:
                return (
                    f"the run has {'failed' if self._error else 'ended or is about to'}: {decision.words} has no effect"
                )
            if self._phase == "queued" and isinstance(decision, Stop):
                self._stop = decision
                return "the run leaves the queue: it has not begun"
            if isinstance(decision, Resume) and not self._pending.paused and not self._pending.will_pause:
                return "the run isn't paused"
            stage, count = self._stage, len(self._plan.stages)
            if stage == count:
                return f"the run is about to end: {decision.words} has no effect"
            self._pending.ask(replace(decision, time_s=time.time()), stage)
            wait_s = PAUSE_POLL_S if self._pending.paused else self._board.next_decision_s
        when = f"in about {max(1, round(wait_s))} s" if self._board.progress else "after the start"
        return f"{decision.words}: at the next decision point, {when} (stage {stage + 1} of {count})"

    def track(self, uri: str, asked_by: str = "") -> str:
        """Have the record continue with the MLflow server of another address; returns at once what will happen.

        It holds for this submission: where the record is kept is no part of what is trained.
        """
        with self._lock:
            if self._phase in ("failed", "finished", "stopped"):
                return f"the run has {'failed' if self._error else 'ended'}: its record stays where it is"
            self._tracking_uri = uri
            self._board.note(f"tracking continues at {uri}, asked by {asked_by}")
        return f"tracking continues at {uri} from the next decision point; what is missing there is sent once"

    # From the workers ------------------------------------------------------------------------------------------------

    def join(self, rank: int, node: str = "", environment: str = "", world_size: int = 0) -> JoinReply:
        """A rank has started on a node, in this runtime environment. Returns all that it needs to train."""
        with self._lock:
            self._environment = environment
            if not self._error:
                if rank == 0:
                    self._new_group(world_size)
                self._board.joined(rank, node)
            return JoinReply(
                error=self._error,
                lease_token=self._lease.token if self._lease is not None else "",
                group=self._starts,
                tracking_uri=self._tracking_uri,
                out_of_memory=tuple(self._out_of_memory),
            )

    def on_resume(self, source: str, cursor: int, stage: int, taken_s: float | None = None) -> None:
        """A group begins at this checkpoint, of this Unix time, which may be older than its submission had seen."""
        with self._lock:
            self._stage = stage
            self._board.on_resume(source, cursor, taken_s)

    def _new_group(self, world_size: int) -> None:
        self._starts += 1
        self._started_s = self._clock()
        self._pending.new_group()
        if self._stop is not None:  # the group that was told is lost: as a request again, after what is due before it
            self._pending.ask(self._stop, self._stage)
            self._stop = None
        self._board.new_group(world_size)
        self._phase = "training"

    def ended(self, decision: Decision) -> None:
        """A group has ended as it was told to; with `NewGroup` the segment continues in another one."""
        self._last = decision

    def on_capacity(self, num_workers: int, possible: int) -> None:
        """The cluster has room for more workers than a group has: let it end with a checkpoint, unless a run waits."""
        if waiting := self._queue.claimed_by():
            self.note(f"does not grow from {num_workers} to {possible} workers: {waiting} waits for room")
            return
        self._ask_new_group(f"from {num_workers} to {possible} workers")
        self.note(f"grows from {num_workers} to {possible} workers at the next decision point")

    def on_node_draining(self, node: str) -> None:
        """A node of the group is draining: let the group end with a checkpoint."""
        self._ask_new_group(f"node {node[:8]} is draining")
        self.note(f"node {node[:8]} is draining: checkpoint at the next decision point")

    def _ask_new_group(self, reason: str) -> None:
        with self._lock:
            self._pending.ask_new_group(reason)

    def environment(self) -> str:
        """Return the runtime environment of the run's workers."""
        return self._environment

    def reached(self) -> int:
        """Return the highest cursor that was reported so far, -1 before any."""
        return self._reached

    def error(self) -> str:
        """Return the error that ended the run, or an empty text."""
        return self._error

    def note(self, line: str) -> None:
        """Something that the user should read; the same line again is not repeated."""
        with self._lock:
            self._board.note(line)

    def report(self, rank: int, cursor: int, wait_share: float) -> None:
        """A rank tells how far it is, and for which share of the time it waited for data."""
        with self._lock:
            self._board.reported(rank, cursor, wait_share)

    def loaded(self, node: str, values: dict[str, float]) -> None:
        """A node without rank 0 tells its load, which rank 0 hears at the next decision point."""
        with self._lock:
            self._loads[node] = values

    def saved(self, uri: str, cursor: int) -> None:
        """A checkpoint is complete."""
        with self._lock:
            self._board.saved(uri, cursor)

    def not_saved(self, line: str) -> None:
        """Storage didn't take a checkpoint; it is tried again."""
        with self._lock:
            self._board.checkpoint_waits += 1
            self._board.note(line)

    def ran_out_of_memory(self, stage: int, samples: int) -> None:
        """A pass of so many samples didn't fit; the next group uses smaller ones."""
        with self._lock:
            if (stage, samples) not in self._out_of_memory:
                self._out_of_memory.append((stage, samples))
        self.note(f"out of memory in stage {stage + 1} with {samples} samples in a pass: continuing with half of them")

    def decide(self, progress: Progress) -> DecisionReply:
        """Take rank 0's progress and say what all ranks do next."""
        with self._lock:
            self._board.decided(progress)
            self._reached = max(self._reached, progress.cursor)
            loads, self._loads = tuple(sorted(self._loads.items())), {}
            return DecisionReply(
                decisions=self._decisions(progress),
                tracking_uri=self._tracking_uri,
                loads=loads,
                taken_over=self._taken_over,
            )

    def _decisions(self, progress: Progress) -> tuple[Decision, ...]:
        if self._error or self._stop:
            return (self._stop or Stop(reason=self._error),)
        decisions = self._pending.decisions(progress)
        self._stage = progress.stage + any(isinstance(decision, NextStage) for decision in decisions)
        self._stop = next((decision for decision in decisions if isinstance(decision, Stop)), None)
        if self._nodes_ahead is not None:
            self._nodes_ahead.look(progress, self._board.seen)
        return decisions

    def failed(self, message: str) -> None:
        """A worker met an error that trying again doesn't cure: the run ends with this message."""
        with self._lock:
            self._error = self._error or redacted(message)
            self._phase = "failed"

    def lost(self, message: str) -> None:
        """Another submission has taken the run over: this one ends, and writes nothing more."""
        self._taken_over = True
        self.failed(message)

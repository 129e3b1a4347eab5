"""Who kills the parts of a run, and makes its other faults."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psutil

from infra.storage.open import open_storage
from infra.tracking.spool import spooled_status
from pipeline.run.sample_log import last_cursor
from tests.chaos.faults import FAULTS, Faults
from tests.chaos.run import BATCH, GIVE_UP_S, Place, Run
from tests.support.killing import kill_family
from tests.support.servers import Server

SECOND = "second submission"


@dataclass(slots=True)
class Kill:
    """One kill, and what came after it."""

    kind: str
    cursor: int
    """Of the newest step before it."""
    killed_s: float
    """When, in Unix time."""
    recovered_s: float = 0.0
    """When a later group took its first step; 0 where it need not stand still."""


class RunOver(Exception):
    """The run has ended before what is waited for."""


@dataclass(slots=True)
class Killer:
    """Disturbs a run at random steps, and has what it took come back after a random while."""

    place: Place
    run: Run
    random: Random
    until_s: float
    """No kills after this, on the monotonic clock."""
    done: list[Kill] = field(default_factory=list)
    _returning: list[tuple[float, Callable[[], Any]]] = field(default_factory=list)
    """What comes back when, in Unix time."""

    def kill_all(self, kinds: Sequence[str], *, num_steps: int) -> None:
        """Submit the run; kill one part after the other at random steps; return when the run has ended.

        On a fast machine it may end while a fault that takes its time is made: what is left is then left out.
        """
        # Not in the last quarter: each kill, and a second submission after it, must find a run that has steps to go.
        steps = sorted(self.random.sample(range(3, num_steps * 3 // 4), len(kinds)))
        self.run.submit()
        try:
            for kind, step in zip(kinds, steps, strict=True):
                self._wait(f"step {step}", lambda: self.run.cursor() >= step * BATCH)  # noqa: B023
                if time.monotonic() > self.until_s:
                    break
                self._kill(kind)
        except RunOver as over:
            print(f"  {over}: {len(self.done)} of {len(kinds)} kills were made", file=sys.stderr)
        self._wait("the end", lambda: self.run.is_finished)
        self._bring_back(math.inf)
        if spooled_status(open_storage(f"{self.place.uri}/runs/{self.run.name}")) is not None:
            self.run.finish()  # MLflow was away at the end: submitted again, a finished run sends what is missing

    def _kill(self, kind: str) -> None:
        kill = Kill(kind, self.run.cursor(), time.time())
        self.done.append(kill)
        print(
            f"{time.strftime('%X')} {self.run.name}: kill {len(self.done)}, {kind}, cursor {kill.cursor}",
            file=sys.stderr,
        )
        if kind in FAULTS:
            faults = Faults(self.place, self.run, self.random, self._after)
            print(f"  {faults.make(kind)}", file=sys.stderr)
            return
        if kind == SECOND:
            self._submit_again()
            return
        if kind in ("S3", "MLflow"):
            self._kill_server(self.place.s3 if kind == "S3" else self.place.mlflow)
            return
        files = set(self.place.samples.glob("*.jsonl"))
        {
            "worker": lambda: self.random.choice(self._some(self._workers)).kill(),
            "node": self._kill_node,
            "driver": self.run.kill_driver,
            "controller": lambda: self._some(self.place.nodes.controllers)[0].kill(),
            "takeover": self._take_over,
        }[kind]()
        self._wait("the next step", lambda: last_cursor(self.place.samples, but=files) >= 0)
        kill.recovered_s = time.time()

    def _kill_node(self) -> None:
        nodes = self.place.nodes
        nodes.kill(self.random.choice(self._some(lambda: [node for node in nodes.nodes if nodes.train_workers(node)])))
        self._later(nodes.add)

    def _take_over(self) -> None:
        """Pause the submission, have a second one of the same name go on elsewhere, wake the first: it must give up."""
        self._bring_back(math.inf)  # a pause that ended amid this would let the first one go on
        paused = [*self._some(self._workers), *self._some(self.place.nodes.controllers)]
        old = self.run.replaced()
        paused.append(psutil.Process(old.pid))
        for process in paused:
            process.suspend()
        reached, files = self.run.cursor(), set(self.place.samples.glob("*.jsonl"))
        self.run.submit("local")
        further = reached + 4 * BATCH
        try:
            self._wait("the second submission", lambda: last_cursor(self.place.samples, but=files) >= further)
        except RuntimeError:
            kill_family(old)
            raise
        self.random.shuffle(paused)
        for process in paused:
            process.resume()
        if old.wait(GIVE_UP_S) != 1 or "was taken over by another submission" not in self.run.output.read_text():
            raise RuntimeError(
                f"{self.run.name}: the paused submission did not give up:\n{self.run.output.read_text()}"
            )
        if self.run.is_driven:
            kill_family(self.run.replaced())  # back to the cluster that the other kills are for

    def _submit_again(self) -> None:
        """Submit the run a second time while it trains: refused in one line.

        Nothing else happens meanwhile: without its holder's controller, the lease would rightly be the second one's. So
        it must have it first: after a takeover it is yet to be submitted again.
        """
        reached = self.run.cursor()
        self._wait("a step of the first submission", lambda: self.run.is_driven and self.run.cursor() != reached)
        second = self.run.second()
        try:
            self._wait("a second submission", lambda: second.poll() is not None or self.run.is_finished)
            if self.run.is_finished:
                return
            output = second.communicate()[0]
        finally:
            if second.poll() is None:
                kill_family(second)
        # 2: its checks before the start saw the lease; 1: the controller did, when it wanted it.
        if second.returncode not in (1, 2) or "is being trained by" not in output:
            raise RuntimeError(f"{self.run.name}: a second submission ended with {second.returncode}:\n{output}")

    def _workers(self) -> list[Any]:
        return [worker for node in self.place.nodes.nodes for worker in self.place.nodes.train_workers(node)]

    def _some(self, look: Callable[[], list[Any]]) -> list[Any]:
        """Return what there is to kill; a group may be about to begin."""
        try:
            self._wait("something to kill", lambda: bool(look()))
        except RunOver:
            self.done.pop()  # this kill was not made
            raise
        return look()

    def _kill_server(self, server: Server) -> None:
        self._bring_back(math.inf)  # it may be down already
        server.kill()
        self._later(server.start)

    def _later(self, function: Callable[[], Any]) -> None:
        """Have `function` called after a random while; training continues meanwhile."""
        self._after(self.random.uniform(1, 8), function)

    def _after(self, seconds: float, function: Callable[[], Any]) -> None:
        self._returning.append((time.time() + seconds, function))

    def _bring_back(self, until_s: float) -> None:
        """Bring back what is due by then."""
        due = [entry for entry in self._returning if entry[0] <= until_s]
        self._returning = [entry for entry in self._returning if entry not in due]
        for _, function in due:
            function()
        self.place.nodes.replace_lost()

    def _wait(self, for_what: str, is_so: Callable[[], bool]) -> None:
        """Wait, and submit the run again when its driver has ended without having finished it."""
        deadline = time.monotonic() + GIVE_UP_S
        while not is_so():
            if not self.run.is_driven and not self.run.is_finished:
                self._bring_back(math.inf)  # a submission wants its servers
                self.run.submit()
            if self.run.is_finished and for_what != "the end":
                raise RunOver(f"{self.run.name} ended before {for_what}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.run.name}: waited for {for_what}\n{self.run.output.read_text()[-5000:]}")
            self._bring_back(time.time())
            time.sleep(0.05)

"""The queue of a cluster's runs: who starts before whom, and what a run waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.control.run_status import RunStatus

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0
Resources = Mapping[str, float]
WAITING = ("queued", "starting")
"""Phases of a run that has no workers yet."""
EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterView:
    """What a run sees of the cluster that it waits on."""

    others: Sequence[RunStatus]
    """The other runs there."""
    total: Resources
    """All resources, by Ray's names."""
    free: Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A run's place in the queue."""

    name: str
    since_s: float
    """When it came (Unix time)."""
    needs: Resources
    """What its workers reserve at least."""


def turn(mine: Place, seen: ClusterView) -> str:
    """Return why a run must wait; empty if it may start.

    It waits while a run that came earlier has no workers yet, unless there is room for both. One that needs more than
    the whole cluster has holds up nobody: it waits for nodes, not for others to end.
    """
    ahead = [other for other in seen.others if _is_before(other, mine) and fits(other.needs, seen.total)]
    both = _sum([mine.needs, *(other.needs for other in ahead)])
    if not ahead or fits(both, seen.free):
        return ""
    names = ", ".join(sorted(other.run.name for other in ahead))
    return "; ".join(filter(None, (f"waits behind {names}", lack(mine, seen))))


def _is_before(other: RunStatus, mine: Place) -> bool:
    return other.phase in WAITING and (other.queued_s, other.run.name) < (mine.since_s, mine.name)


def lack(mine: Place, seen: ClusterView) -> str:
    """Say what a run needs, what is free, and who has the rest; empty where it fits."""
    if fits(mine.needs, seen.free):
        return ""
    parts = [
        f"{amount:g} {name} needed, {seen.free.get(name, 0):g} of {seen.total.get(name, 0):g} free"
        for name, amount in mine.needs.items()
        if amount > seen.free.get(name, 0) + EPSILON
    ]
    holders = [
        f"{other.run.name} ({other.workers.count} worker{'' if other.workers.count == 1 else 's'})"
        for other in seen.others
        if other.phase not in WAITING and other.workers and other.workers.count
    ]
    return "; ".join([*parts, *([f"in use by {', '.join(holders)}"] if holders else [])])


def claimed_by(seen: ClusterView) -> str:
    """Return the name of another run that waits for room, and could have it; empty without one."""
    waiting = [other for other in seen.others if other.phase in WAITING and other.waits]
    return min((other.run.name for other in waiting if fits(other.needs, seen.total)), default="")


def fits(needs: Resources, room: Resources) -> bool:
    """Say whether there is so much of each resource."""
    return all(amount <= room.get(name, 0.0) + EPSILON for name, amount in needs.items())


def _sum(parts: Sequence[Resources]) -> dict[str, float]:
    return {name: sum(part.get(name, 0.0) for part in parts) for name in {name for part in parts for name in part}}


class QueuePlace:
    """A run's wait in the queue: looks every few seconds until it may start, then until there is room for its workers.

    Args:
        place: of the run.
        look: returns what it sees of its cluster; None: it waits for nobody.
    """

    def __init__(self, place: Place, look: Callable[[], ClusterView] | None) -> None:
        self.place, self._look = place, look
        self.waits = ""
        """What the run waits for; empty once it had room."""

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Return when it is the run's turn, or when `is_over` says that it is not wanted any more."""
        while not is_over():
            seen = self._seen()
            self.waits = turn(self.place, seen) if seen else ""
            if not self.waits:
                break
            time.sleep(LOOK_EVERY_S)
        else:
            return
        self.waits = lack(self.place, seen) if seen else ""
        if self.waits:  # Ray places the workers when it can
            threading.Thread(target=self._watch_room, name="queue", daemon=True).start()

    def _watch_room(self) -> None:
        while self.waits:
            time.sleep(LOOK_EVERY_S)
            if seen := self._seen():
                self.waits = lack(self.place, seen)

    def claimed_by(self) -> str:
        """Return the name of a run that waits for room, which this one must not grow into; empty without one."""
        seen = self._seen()
        return claimed_by(seen) if seen else ""

    def _seen(self) -> ClusterView | None:
        """Return what there is to see; None on a cluster that is changing, where Ray alone decides who starts."""
        try:
            return self._look() if self._look is not None else None
        except Exception as error:
            log.warning("the run does not see its cluster: %s", error)
            return None

"""The queue of a cluster's runs: its order, its reasons, and what a controller does in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.control import queue
from pipeline.control.controller import StageController
from pipeline.control.queue import ClusterView, Place, QueuePlace, claimed_by, fits, lack, turn
from pipeline.control.run_status import GroupStatus, Phase, RunIdentity, RunStatus, read_status
from pipeline.schedule.decisions import Stop
from tests.support.groups import plan_of, stage

SECONDS = 30


def other(name: str, phase: Phase, since_s: float, gpus: float, workers: int = 0, waits: str = "") -> RunStatus:
    return RunStatus(
        run=RunIdentity(name=name),
        phase=phase,
        queued_s=since_s,
        needs={"GPU": gpus},
        workers=GroupStatus(count=workers),
        waits=waits,
    )


def view(*others: RunStatus, free: float, total: float = 8) -> ClusterView:
    return ClusterView(others=others, total={"GPU": total}, free={"GPU": free})


MINE = Place(name="mine", since_s=10, needs={"GPU": 4})


def test_a_run_waits_behind_an_earlier_one_and_says_why() -> None:
    seen = view(other("first", "starting", 5, 8), other("busy", "training", 1, 4, workers=4), free=4)
    assert turn(MINE, seen) == "waits behind first"
    seen = view(other("first", "queued", 5, 8), other("busy", "training", 1, 8, workers=8), free=0)
    assert turn(MINE, seen) == "waits behind first; 4 GPU needed, 0 of 8 free; in use by busy (8 workers)"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (view(free=0), "nobody is before it: Ray places its workers when there is room"),
        (view(other("later", "queued", 11, 4), free=0), "the other came later"),
        (view(other("first", "starting", 5, 4), free=8), "there is room for both"),
        (view(other("greedy", "queued", 5, 99), free=4), "the other waits for nodes that are not there"),
        (view(other("first", "training", 5, 4, workers=4), free=4), "the other has its workers"),
        (view(other("old", "finished", 5, 4), free=0), "the other has ended"),
    ],
)
def test_a_run_starts_when(seen: ClusterView, why: str) -> None:
    assert turn(MINE, seen) == "", why


def test_a_run_that_has_its_turn_says_what_has_no_room_yet() -> None:
    seen = view(other("busy", "training", 1, 6, workers=6), free=2)
    assert lack(MINE, seen) == "4 GPU needed, 2 of 8 free; in use by busy (6 workers)"
    assert lack(MINE, view(free=4)) == ""


def test_nobody_grows_into_what_a_waiting_run_needs() -> None:
    waiting = other("waiting", "queued", 5, 4, waits="waits behind first")
    assert claimed_by(view(waiting, free=2)) == "waiting"
    assert claimed_by(view(other("coming", "starting", 5, 4), free=8)) == ""
    assert claimed_by(view(other("greedy", "starting", 5, 99, waits="99 GPU needed"), free=2)) == ""


runs = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=6)


@given(asked=runs, free=st.integers(0, 8))
def test_some_run_always_has_its_turn_and_those_that_wait_do_so_for_an_earlier_one(
    asked: list[tuple[int, int]], free: int
) -> None:
    """No deadlock, and no starvation: the first of those that fit the cluster never waits."""
    statuses = [other(f"run-{index}", "queued", since, gpus) for index, (since, gpus) in enumerate(asked)]
    reasons = {}
    for mine in statuses:
        place = Place(name=mine.run.name, since_s=mine.queued_s, needs=mine.needs)
        reasons[mine.run.name] = turn(place, view(*(one for one in statuses if one is not mine), free=free))
    by_time = sorted(statuses, key=lambda one: (one.queued_s, one.run.name))
    first = next((one for one in by_time if fits(one.needs, {"GPU": 8})), by_time[0])
    assert reasons[first.run.name] == ""
    started = [one for one in by_time if not reasons[one.run.name] and fits(one.needs, {"GPU": 8})]
    assert len(started) == 1 or sum(one.needs["GPU"] for one in started) <= free


# The controller in it ------------------------------------------------------------------------------------------------


class Cluster:
    """What a controller sees, set by the test; trains nothing."""

    def __init__(self, seen: ClusterView | None) -> None:
        self.seen = seen
        self.fitted = threading.Event()

    def look(self) -> ClusterView:
        if self.seen is None:
            raise ConnectionError("the cluster is changing")
        return self.seen

    def controller(self) -> StageController:
        return StageController(
            plan_of(stage(), num_workers=(4, 8)),
            lambda segment: self.fitted.set(),
            queue=QueuePlace(MINE, self.look),
        )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "LOOK_EVERY_S", 0.01)


def started(controller: StageController) -> tuple[threading.Thread, list[Any]]:
    ends: list[Any] = []
    thread = threading.Thread(target=lambda: ends.append(controller.run()))
    thread.start()
    return thread, ends


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_controller_waits_its_turn_shows_it_and_then_trains() -> None:
    cluster = Cluster(view(other("first", "queued", 1, 8), free=0))
    controller = cluster.controller()
    thread, ends = started(controller)
    wait_for(lambda: controller.status().waits)
    shown = read_status(controller.status().to_json())
    assert (shown.phase, shown.needs) == ("queued", {"GPU": 4.0})
    assert shown.waits == "waits behind first; 4 GPU needed, 0 of 8 free"
    assert not cluster.fitted.is_set()
    cluster.seen = view(free=8)
    thread.join(SECONDS)
    assert cluster.fitted.is_set()
    assert ends[0].waits == ""


def test_a_run_that_is_stopped_in_the_queue_never_begins() -> None:
    cluster = Cluster(view(other("first", "queued", 1, 8), free=0))
    controller = cluster.controller()
    thread, ends = started(controller)
    wait_for(lambda: controller.status().waits)
    assert controller.ask(Stop(reason="Ctrl-C")) == "the run leaves the queue: it has not begun"
    thread.join(SECONDS)
    assert ends[0].phase == "stopped"
    assert not cluster.fitted.is_set()


def test_a_run_whose_lease_is_lost_in_the_queue_fails() -> None:
    cluster = Cluster(view(other("first", "queued", 1, 8), free=0))
    controller = cluster.controller()
    controller.lost("taken over")
    with pytest.raises(RuntimeError, match="taken over"):
        controller.run()
    assert controller.status().phase == "failed"
    assert not cluster.fitted.is_set()


def test_a_cluster_that_can_not_be_seen_holds_up_nobody() -> None:
    cluster = Cluster(None)
    cluster.controller().run()
    assert cluster.fitted.is_set()


def test_a_run_that_has_its_turn_shows_what_it_waits_for_until_there_is_room() -> None:
    cluster = Cluster(view(other("busy", "training", 1, 8, workers=8), free=0))
    ready = threading.Event()
    controller = StageController(
        plan_of(stage(), num_workers=4),
        lambda segment: bool(ready.wait(SECONDS)) or None,
        queue=QueuePlace(MINE, cluster.look),
    )
    thread, _ = started(controller)
    wait_for(lambda: controller.status().phase == "starting")
    assert controller.status().waits == "4 GPU needed, 0 of 8 free; in use by busy (8 workers)"
    cluster.seen = view(free=8)
    wait_for(lambda: not controller.status().waits)
    ready.set()
    thread.join(SECONDS)


def test_growth_waits_for_a_run_that_waits() -> None:
    cluster = Cluster(view(other("waiting", "queued", 99, 4, waits="waits behind mine"), free=2))
    controller = cluster.controller()
    controller.on_capacity(4, 8)
    assert controller.status().pending == ()
    assert controller.status().notes == ("does not grow from 4 to 8 workers: waiting waits for room",)
    cluster.seen = view(free=4)
    controller.on_capacity(4, 8)
    assert controller.status().pending != ()

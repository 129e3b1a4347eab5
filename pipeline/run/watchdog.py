"""A rank in which nothing happens for too long: it leaves its stacks and ends, and a new worker group resumes.

Ray Train's own detector (`ray.train.v2._internal.callbacks.nccl_ras`) compares NCCL's operation counts, so it needs
GPUs and sees no loader that hangs on the CPU. Here each rank watches itself. The others wait in a collective for one
that hangs, so they have no step either and leave their stacks too.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import psutil

from infra.storage.base import Storage
from infra.timeouts import call_with_timeout
from pipeline.run.stacks import Stacks, forks

log = logging.getLogger(__name__)

STACKS_FOLDER = "stacks"
"""Folder of the run's storage that takes the stacks."""
TELL_TIMEOUT_S = 30.0
"""For how long storage, and then the controller, may hold up the end of a rank that hangs, in seconds."""
OTHERS_S = 10.0
"""Seconds that the other ranks get to leave their stacks: with the first rank that ends, Ray Train ends the group."""
END_S = 2 * TELL_TIMEOUT_S + OTHERS_S + 60
"""A rank that hung has ended after so many seconds more, whatever its end hangs in."""
_STDERR = 2


class Watchdog:
    """Calls `stuck`, once, when there was no heartbeat for `timeout_s` seconds; used as a context manager.

    `stuck` is called in a thread of the watchdog. Where no thread can run, since a call into C hangs while it holds
    Python's lock, the process writes its stacks to its log `spare_s` later, and ends.

    Args:
        timeout_s: longest time between two heartbeats; 0: any.
        stuck: ends the process.
        elsewhere: says whether something else progresses that this process waits for; asked when the time is over.
        spare_s: what `stuck` may take.
        clock: in seconds.
    """

    def __init__(
        self,
        timeout_s: float,
        stuck: Callable[[], None],
        *,
        elsewhere: Callable[[], bool] = lambda: False,
        spare_s: float = END_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout_s, self.spare_s, self._clock = timeout_s, spare_s, clock
        self._stuck, self._elsewhere = stuck, elsewhere
        self._last_s, self._closed = clock(), threading.Event()
        self._timer_lock = threading.Lock()

    def heartbeat(self) -> None:
        """Something was done: a step, a batch of an evaluation, a look at whether a pause has ended."""
        self._last_s = self._clock()

    @property
    def is_overdue(self) -> bool:
        """Whether nothing was done for too long."""
        return self.timeout_s > 0 and self._clock() - self._last_s > self.timeout_s

    def __enter__(self) -> Watchdog:
        self.heartbeat()
        if self.timeout_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._timer_lock:
            self._closed.set()
            if self.timeout_s:
                faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.timeout_s / 4)):
            if self.is_overdue and not self._progresses_elsewhere():
                self._stuck()
                return
            self._set_timer()

    def _progresses_elsewhere(self) -> bool:
        progresses = self._elsewhere()
        if progresses:
            self.heartbeat()
        return progresses

    def _set_timer(self) -> None:
        with self._timer_lock:
            if not self._closed.is_set():
                faulthandler.dump_traceback_later(self.timeout_s + self.spare_s, exit=True, file=_STDERR)


def end_stuck_rank(storage: Storage, rank: int, timeout_s: float, stacks: Stacks, tell: Callable[[str], None]) -> None:
    """Leave this rank's stacks in storage and in its log, tell where, and end the process and its loaders."""
    text = stacks.take()
    key = f"{STACKS_FOLDER}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-rank-{rank}.txt"
    line = f"rank {rank} made no progress for {timeout_s:g} s (cluster.step_timeout_s): a new worker group resumes"
    log.error("%s\n%s", line, text.decode(errors="replace"))
    where = "its stacks are in its log"
    try:
        call_with_timeout(TELL_TIMEOUT_S, lambda: storage.write(key, text))
        where = f"its stacks are in {storage.location(key)}"
    except Exception as error:  # storage may be what hangs
        log.error("the stacks could not be written to %s: %s", storage.location(key), error)
    try:
        call_with_timeout(TELL_TIMEOUT_S, lambda: tell(f"{line}; {where}"))
    except Exception as error:
        log.error("the controller could not be told: %s", error)
    time.sleep(min(OTHERS_S, timeout_s))
    _end()


def _end() -> None:
    """End this process now, and its forks: a loader that hangs would stay, with its memory and locks."""
    for process in forks():
        with suppress(psutil.Error):
            process.kill()
    os._exit(1)

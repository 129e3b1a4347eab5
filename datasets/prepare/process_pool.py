"""Runs independent tasks in processes, with progress from inside a task, and leaves no process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from datasets.errors import DataError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_POLL_S = 0.1

# Set in each worker process by `_start`.
_counter: Any = None
_stop: Any = None


class _Stopped(Exception):
    """Another task failed, or the caller was interrupted."""


def count_one() -> None:
    """Called by a task for each unit done; ends the task early when the whole is being stopped."""
    if _stop.value:
        raise _Stopped
    with _counter.get_lock():
        _counter.value += 1


def run_tasks(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], *, workers: int, progress: Callable[[int], None]
) -> list[_Result]:
    """Run `function` on every task in `workers` processes and return what it returned; the first error ends all.

    Args:
        function: of this module's callers; calls `count_one` for each unit of its work.
        tasks: picklable.
        workers: processes.
        progress: called with the units done so far a few times a second.

    Raises:
        DataError: a process died; and whatever `function` raises.
    """
    if not tasks:
        return []
    # Forked workers start at once; the others would import everything again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    # What the parent does has no lock: a process that was killed may hold it.
    counter, stop = context.Value("q", 0), context.RawValue("b", 0)
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_start, initargs=(counter, stop, os.getpid())
    )
    try:
        futures = [pool.submit(function, task) for task in tasks]
        pending = {*futures}
        while pending:
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            progress(counter.get_obj().value)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed (out of memory?); run again to continue, or with fewer --workers"
        ) from error
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _start(counter: Any, stop: Any, parent: int) -> None:
    global _counter, _stop
    _counter, _stop = counter, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which stops everybody
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would print a traceback here
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    """End this process when its parent is gone, SIGKILL included; it would wait for tasks forever."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)

"""Ends a study's runs with checkpoints: one that the scheduler ends, or all on Ctrl-C or at the time limit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pipeline.run.controller_client import ControllerClient, find_controllers
from pipeline.schedule.decisions import Stop
from pipeline.sweep.config import is_of_study

AGAIN_S = 1.0
"""Longest pause between two rounds of telling runs to stop: a trial may start one meanwhile."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what a cluster sends."""


class Stopper:
    """Tells runs of a study to stop at their next decision point: one, or all of them and nothing new is begun."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._stop, self._over = threading.Event(), threading.Event()
        self._ended: set[str] = set()

    def __reduce__(self) -> tuple[object, ...]:
        return Stopper, (self._study,)  # Tune pickles its scheduler, which has it, to restore it

    @property
    def stopping(self) -> bool:
        """Whether the study is to end."""
        return self._stop.is_set()

    def end(self, run: str) -> None:
        """Stop one run, now or as soon as it has started."""
        self._ended = {*self._ended, run}

    @contextlib.contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """While in it, stop on Ctrl-C or SIGTERM, and after `seconds` if that is above 0. A second one interrupts at
        once."""
        signals = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._interrupted) for number in signals}
        timer = threading.Timer(seconds, self._stop.set) if seconds else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        threading.Thread(target=self._tell, name="stopper", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()
            if timer is not None:
                timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        print("stopping, with checkpoints; Ctrl-C again stops at once", flush=True)
        self._stop.set()

    def _tell(self) -> None:
        told: set[str] = set()
        while not self._over.wait(AGAIN_S):
            if not (self.stopping or self._ended):
                continue
            for name, controller in _controllers().items():
                meant = name in self._ended or (self.stopping and is_of_study(name, self._study))
                if meant and controller.actor_id not in told:
                    told.add(controller.actor_id)
                    controller.request(Stop(asked_by=self._study))


def _controllers() -> dict[str, ControllerClient]:
    import ray

    with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
        return find_controllers()
    return {}

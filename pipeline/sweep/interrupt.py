"""Ends a study's runs with checkpoints: on Ctrl-C, or when its time is over."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from infra.running import controllers
from pipeline.decisions import Stop
from pipeline.sweep.config import is_of_study

AGAIN_S = 1.0
"""Pause between two rounds of telling runs to stop: a trial may start one meanwhile."""


class Stopper:
    """Tells every run of a study to stop at its next decision point. Nothing new is begun then."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._stop, self._over = threading.Event(), threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether the study is to end."""
        return self._stop.is_set()

    @contextlib.contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """While in it, stop on Ctrl-C, and after `seconds` if that is above 0. A second Ctrl-C interrupts at once."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, self._interrupted) if main else None
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
            if main:
                signal.signal(signal.SIGINT, before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        print("stopping, with checkpoints; Ctrl-C again stops at once", flush=True)
        self._stop.set()

    def _tell(self) -> None:
        while not (self._stop.wait(AGAIN_S) or self._over.is_set()):
            continue
        told: set[Any] = set()
        while not self._over.is_set():
            for name, controller in _controllers().items():
                if is_of_study(name, self._study) and controller._actor_id not in told:
                    told.add(controller._actor_id)
                    controller.ask.remote(Stop(asked_by=self._study))
            self._over.wait(AGAIN_S)


def _controllers() -> dict[str, Any]:
    import ray

    with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
        return controllers()
    return {}

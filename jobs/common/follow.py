"""A run followed to its end: its progress is shown, and Ctrl-C stops it with a checkpoint."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext, suppress
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from infra.redact import last_line
from jobs.common.cli import operator
from jobs.common.display import PLAIN_LINE_EVERY_S, POLL_S, progress_line
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight
from pipeline.schedule.decisions import Stop


def follow_to_end(console: Console, ready: Preflight) -> dict[str, Any]:
    """Run to the end, and return the last status; Ctrl-C stops at the next decision point with a checkpoint, a second
    one at once.

    Raises:
        RuntimeError: the run failed.
        ValueError: it could not start.
    """
    import ray

    from pipeline.run.launch import start_controller

    controller = start_controller(ready)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what clusters send means the same as Ctrl-C
    follower = Follower(console, ready.config, controller, controller.run.remote())
    try:
        try:
            return follower.follow()
        except KeyboardInterrupt:
            console.print("stopping with a checkpoint; Ctrl-C again stops at once")
            ray.get(controller.ask.remote(Stop(asked_by=operator(), reason="Ctrl-C")))
            return follower.follow()
    except ray.exceptions.ActorDiedError:
        raise RuntimeError(
            "its controller was lost, with its process or its node; the same command goes on from the newest checkpoint"
        ) from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(last_line(error)) from error
    finally:
        ray.kill(controller)


class Follower:
    """Shows a run's progress and notes: live in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, config: TrainConfig, controller: Any, run: Any) -> None:
        self.console, self.config, self.controller, self.run = console, config, controller, run
        self._noted = 0
        self._last_line, self._last_printed = "", 0.0

    def follow(self) -> dict[str, Any]:
        """Show progress until the run ends; return its last status, or raise what it raises. May be called again."""
        live = Live(console=self.console, refresh_per_second=4, transient=True)
        with live if self.console.is_terminal else nullcontext() as shown:
            while not ray.wait([self.run], timeout=POLL_S)[0]:
                with suppress(ray.exceptions.ActorUnavailableError):  # for a moment, as on a very busy head
                    self._show(ray.get(self.controller.status.remote()), shown)
            with suppress(ray.exceptions.RayError):  # the controller itself may be what was lost
                self._show_notes(ray.get(self.controller.status.remote()))
            try:
                status: dict[str, Any] = ray.get(self.run)
            except ray.exceptions.ActorUnavailableError:  # its answer is lost, but the run goes on
                status = self._follow_status(shown)
        return status

    def _follow_status(self, live: Live | None) -> dict[str, Any]:
        """Show progress until the controller says that the run has ended."""
        while True:
            with suppress(ray.exceptions.ActorUnavailableError):
                status: dict[str, Any] = ray.get(self.controller.status.remote())
                self._show(status, live)
                if status["phase"] == "failed":
                    raise RuntimeError(status["error"])
                if status["phase"] in ("finished", "stopped"):
                    return status
            time.sleep(POLL_S)

    def _show(self, status: dict[str, Any], live: Live | None) -> None:
        self._show_notes(status)
        line = progress_line(self.config, status)
        if live is not None:
            live.update(Text(line))
        elif line != self._last_line and time.monotonic() - self._last_printed > PLAIN_LINE_EVERY_S:
            self.console.print(line, highlight=False, soft_wrap=True)
            self._last_line, self._last_printed = line, time.monotonic()

    def _show_notes(self, status: dict[str, Any]) -> None:
        new = status["noted"] - self._noted
        for note in status["notes"][-new:] if new else ():
            self.console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        self._noted = status["noted"]

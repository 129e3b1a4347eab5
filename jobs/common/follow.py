"""Follow a run to its end: show its progress, and stop it with a checkpoint on Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from infra.storage.failures import FailureClass
from jobs.common.cli import operator
from jobs.common.display import PLAIN_LINE_EVERY_S, POLL_S, progress_line, say
from pipeline.config import TrainConfig
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import (
    ControllerAwayError,
    ControllerClient,
    ControllerError,
    ControllerLostError,
    RunFuture,
)
from pipeline.run.preflight import Preflight
from pipeline.schedule.decisions import Stop


class RunLostError(RuntimeError):
    """The run's controller was lost: submitted again, the run resumes."""

    failure = FailureClass.TRANSIENT


def follow_to_end(
    console: Console, ready: Preflight, *, begin: Callable[[], None] = lambda: None, prepare_tracking: bool = False
) -> RunStatus:
    """Run to the end, and return the last status; Ctrl-C stops at the next decision point with a checkpoint, a second
    one at once. `begin` and `prepare_tracking` are `start_controller`'s.

    Raises:
        RunLostError: its controller was lost, or doesn't answer.
        RuntimeError: the run failed.
        ValueError: it could not start.
    """
    from pipeline.run.launch import start_controller

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what clusters send means the same as Ctrl-C
    controller = start_controller(ready, begin=begin, prepare_tracking=prepare_tracking)
    follower = Follower(console, ready.config, controller, controller.run())
    try:
        try:
            return follower.follow()
        except KeyboardInterrupt:
            console.print("stopping with a checkpoint; Ctrl-C again stops at once")
            controller.ask(Stop(asked_by=operator(), reason="Ctrl-C"))
            return follower.follow()
    except ControllerLostError:
        raise RunLostError(
            "its controller was lost, with its process or its node; run the same command again to resume from the "
            "latest valid checkpoint"
        ) from None
    except ControllerAwayError as error:
        raise RunLostError(str(error)) from error
    finally:
        controller.kill()


class Follower:
    """Shows a run's progress and notes: live in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, config: TrainConfig, controller: ControllerClient, run: RunFuture) -> None:
        self.console, self.config, self.controller, self.run = console, config, controller, run
        self._noted = 0
        self._last_line, self._last_printed = "", 0.0

    def follow(self) -> RunStatus:
        """Show progress until the run ends; return its last status, or raise what it raises. May be called again."""
        live = Live(console=self.console, refresh_per_second=4, transient=True)
        with live if self.console.is_terminal else nullcontext() as shown:
            while not self.run.done(POLL_S):
                with suppress(ControllerAwayError):  # for a moment, as on a very busy head
                    self._show(self.controller.status(), shown)
            with suppress(ControllerError):  # the controller itself may be what was lost
                self._show_notes(self.controller.status())
            try:
                return self.run.result()
            except ControllerAwayError:  # its answer is lost, but the run continues
                return self._follow_status(shown)

    def _follow_status(self, live: Live | None) -> RunStatus:
        """Show progress until the controller says that the run has ended."""
        while True:
            with suppress(ControllerAwayError):
                status = self.controller.status()
                self._show(status, live)
                if status.phase == "failed":
                    raise RuntimeError(status.error)
                if status.phase in ("finished", "stopped"):
                    return status
            time.sleep(POLL_S)

    def _show(self, status: RunStatus, live: Live | None) -> None:
        self._show_notes(status)
        line = progress_line(self.config, status)
        if live is not None:
            live.update(Text(line))
        elif line != self._last_line and time.monotonic() - self._last_printed > PLAIN_LINE_EVERY_S:
            say(self.console, line)
            self._last_line, self._last_printed = line, time.monotonic()

    def _show_notes(self, status: RunStatus) -> None:
        new = status.noted - self._noted
        for note in status.notes[-new:] if new else ():
            say(self.console, f"note: {note}")
        self._noted = status.noted

"""Control an active run: `python -m jobs.control RUN COMMAND [ARGUMENTS] [--address HOST:PORT]`.

Commands: advance (end the stage), extend EPOCHS (make the stage longer), checkpoint, pause, resume, stop (with a
checkpoint; the same submission resumes it), set FIELD VALUE (lr_scale, patience, log_every),
tracking URI (the MLflow server has another address now).
The answer comes at once. The command is carried out at the next decision point, by all workers at the same step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from infra.cluster.discovery import visit
from infra.redact import redacted
from infra.tracking.config import TrackingConfig, check
from jobs.common.cli import operator, run_main
from jobs.common.parsing import UsageError, parse
from pipeline.run.controller_client import ControllerClient, ControllerError, find_controllers
from pipeline.schedule.decisions import (
    LIVE_FIELDS,
    Checkpoint,
    Decision,
    ExtendStage,
    NextStage,
    Pause,
    Resume,
    SetField,
    Stop,
)

COMMANDS: dict[str, tuple[tuple[str, ...], Callable[..., Decision]]] = {
    "advance": ((), NextStage),
    "extend": (("EPOCHS",), lambda epochs: ExtendStage(epochs=_number(epochs))),
    "checkpoint": ((), Checkpoint),
    "pause": ((), Pause),
    "resume": ((), Resume),
    "stop": ((), Stop),
    "set": (("FIELD", "VALUE"), lambda name, value: SetField(name=name.replace("-", "_"), value=_number(value))),
}
"""Command -> its arguments, and the decision that it requests."""
TRACKING = "tracking"
"""Not a decision, since it does not affect training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is said to which run."""

    run: Annotated[str, tyro.conf.Positional]
    """Name of the run."""
    command: Annotated[str, tyro.conf.Positional]
    """The command."""
    arguments: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Arguments of the command: EPOCHS for extend, FIELD VALUE for set, URI for tracking."""
    address: str = ""
    """Address of the Ray cluster. Empty: RAY_ADDRESS, or else the clusters on this machine."""
    reason: str = ""
    """The reason, which is recorded with the decision."""


def decision_of(command: str, arguments: Sequence[str]) -> Decision:
    """Return the decision that a command asks for.

    Raises:
        ValueError: no such command, or wrong arguments.
    """
    if command not in COMMANDS:
        raise UsageError(f"no command is named {command!r}: there are {', '.join((*COMMANDS, TRACKING))}")
    names, make = COMMANDS[command]
    if len(arguments) != len(names):
        hint = f" (FIELD: {', '.join(LIVE_FIELDS)})" if command == "set" else ""
        raise UsageError(f"usage: jobs.control RUN {' '.join((command, *names))}{hint}")
    return make(*arguments)


def tracking_uri(arguments: Sequence[str]) -> str:
    """Return the address that a run's record is to continue at, if an MLflow server answers there.

    Raises:
        ValueError: none does, or it is no server's address.
    """
    if len(arguments) != 1:
        raise UsageError(f"usage: jobs.control RUN {TRACKING} URI")
    (uri,) = arguments
    if not uri.startswith(("http://", "https://")):
        raise UsageError(f"tracking {redacted(uri)}: expected the address of an MLflow server, http(s)://HOST")
    if redacted(uri) != uri:
        raise UsageError(
            "the address holds a user or password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    check(TrackingConfig(uri=uri))
    return uri


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number") from None


def _request(options: Options) -> Callable[[ControllerClient], str]:
    """Return what says it to a run's controller, checked before any is looked for."""
    if options.command == TRACKING:
        uri = tracking_uri(options.arguments)
        return lambda controller: controller.track(uri, operator())
    decision = decision_of(options.command, options.arguments)
    said = replace(decision, asked_by=operator(), reason=options.reason)
    return lambda controller: controller.ask(said)


def main(argv: Sequence[str]) -> int:
    """Ask the run's controller; print its answer."""
    options = parse(Options, argv, prog="python -m jobs.control", description=__doc__)
    request = _request(options)
    others: list[str] = []

    def tell() -> str:
        found = find_controllers()
        others.extend(found)
        with suppress(ControllerError):
            return request(found[options.run]) if options.run in found else ""
        return ""

    answers = [said for said in visit(options.address, tell).values() if said]
    if options.run in others:
        print(f"{options.run}: {answers[0] if answers else 'its controller has ended or does not answer'}")
        return 0 if answers else 1
    there = f"there are {', '.join(others)}" if others else "no active runs"
    print(f"error: no active run is named {options.run!r}: {there}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run_main(main)

"""Show active runs: `python -m jobs.status [RUN] [--watch] [--json] [--address HOST:PORT]`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from infra.cluster.config import ClusterError
from infra.cluster.discovery import NoClusterError, attached, is_local, is_up, visit
from jobs.common.cli import run_main
from jobs.common.display import wide_console
from jobs.common.parsing import parse
from jobs.common.status_view import run_view
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import ControllerError, find_controllers
from pipeline.sweep.config import is_of_study


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is shown, and how."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Name of a run, or of a sweep or search for its active trials; none given: all runs."""
    watch: bool = False
    """Repeat until the runs have ended."""
    every_s: float = 2.0
    """With --watch: seconds between two updates."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON, one line per update, instead of tables; without runs an empty list."""
    address: str = ""
    """Address of the Ray cluster. Empty: RAY_ADDRESS, else the clusters on this machine."""


def main(argv: Sequence[str]) -> int:
    """Show the runs once, or until they end. Exit code 1: there is no such active run."""
    options = parse(
        Options, argv, prog="python -m jobs.status", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    console = wide_console()
    try:
        looks = visit(options.address, lambda: _statuses(options.run))
    except NoClusterError:
        if not options.as_json:
            raise
        looks = {}
    some = [address for address, found in looks.items() if found]
    if not some:
        none = f"no active run is named {options.run!r}" if options.run else "no active runs"
        print("[]" if options.as_json else none)
        return 1
    _show(console, options, _flat(looks))
    if options.watch:
        _watch(console, options, some)
    return 0


def _flat(looks: dict[str, list[RunStatus]]) -> list[RunStatus]:
    return [status for found in looks.values() for status in found]


def _statuses(run: str) -> list[RunStatus]:
    """Ask the runs that are meant; a controller that has ended or doesn't answer is passed over."""
    found = list[RunStatus]()
    for name, controller in find_controllers().items():
        if run in ("", name) or is_of_study(name, run):
            with suppress(ControllerError):
                found.append(controller.status())
    return found


def _watch(console: Console, options: Options, addresses: list[str]) -> None:
    """Show the runs until all have ended. One cluster stays connected; several are gone through."""
    if len(addresses) > 1:
        _repeat(console, options, lambda: _flat(visit(options.address, lambda: _statuses(options.run))))
    else:
        with suppress(ClusterError), attached(addresses[0], found_here=is_local(options.address)):
            _repeat(console, options, lambda: _statuses(options.run) if is_up(addresses[0]) else [])


def _repeat(console: Console, options: Options, statuses: Callable[[], list[RunStatus]]) -> None:
    if options.as_json or not console.is_terminal:
        while found := statuses():
            _show(console, options, found)
            time.sleep(options.every_s)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while found := statuses():
            live.update(_views(found), refresh=True)
            time.sleep(options.every_s)
    console.print("all runs have ended" if not options.run else f"{options.run} has ended")


def _show(console: Console, options: Options, found: list[RunStatus]) -> None:
    if options.as_json:
        print(json.dumps([status.to_json() for status in found]), flush=True)
    else:
        console.print(_views(found))


def _views(found: list[RunStatus]) -> RenderableType:
    clock = Text(time.strftime("%H:%M:%S"), style="dim")
    return Group(clock, *(run_view(status) for status in found))


if __name__ == "__main__":
    run_main(main)

"""A run's start: its milestones, and the CPU time and memory of each of its processes."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import psutil
from rich.table import Table

from infra.cluster.code_package import ROOT
from jobs.common.display import wide_console
from jobs.common.parsing import UsageError
from pipeline.run.sample_log import VARIABLE, last_cursor

POLL_S = 0.2
GIVE_UP_S = 600.0
END_S = 120.0
"""How long a run may take to stop."""
MILESTONES = {
    "first line": "",
    "Ray's node": "raylet",
    "run's controller": "ray::StageController",
    "workers": "ray::RayTrainWorker",
    "first step": "",
}
"""What a start goes through, and the process whose appearance tells it."""
_NAMES = (
    (r"ray::(\w+)", r"ray::\1"),
    (r"(raylet|gcs_server)\b", r"\1"),
    (r"(dashboard|log_monitor|monitor|agent|default_worker|setup_worker)\.py", r"Ray's \1"),
    (r"infra\.tracking\.prepare_process", "MLflow's preparation"),
    (r"jobs\.train", "driver"),
)
"""Command line of a process -> what it is."""


class Usage(NamedTuple):
    """What a process has taken."""

    name: str
    cpu_s: float
    """User and system time."""
    pss_mb: float = 0.0
    """Resident memory, shared pages counted by their share; 0: not measured."""


class Reached(NamedTuple):
    """When a milestone was reached, from the run's submission."""

    wall_s: float
    cpu_s: float
    """CPU time of all processes until then."""


@dataclass(slots=True)
class Start:
    """What was seen of a run's start."""

    reached: dict[str, Reached] = field(default_factory=dict)
    usage: dict[int, Usage] = field(default_factory=dict)
    """By process id, when the first step was taken."""
    memory: dict[int, Usage] = field(default_factory=dict)
    """The same, after the run has settled."""


def show_starts(recipe: str, workers: int, rounds: int, settle_s: float) -> None:
    """Start runs of a recipe, and print their milestones and processes."""
    starts = [measured_start(recipe, workers, settle_s) for _ in range(rounds)]
    console = wide_console()
    table = Table(title=f"start of {recipe}, {workers} workers: median (min to max) of {rounds}", title_justify="left")
    for name in ("milestone", "seconds", "CPU seconds of all processes"):
        table.add_column(name, justify="right")
    for name in MILESTONES:
        found = [start.reached[name] for start in starts if name in start.reached]
        table.add_row(name, _spread(one.wall_s for one in found), _spread(one.cpu_s for one in found))
    console.print(table)
    console.print(_process_table(starts[-1], settle_s))


def measured_start(recipe: str, workers: int, settle_s: float) -> Start:
    """Submit a run, watch it until `settle_s` seconds after its first step, and stop it.

    Raises:
        UsageError: it ended before its first step, or before it had settled.
    """
    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "steps")
        log.mkdir()
        command = [sys.executable, "-m", "jobs.train", recipe, "--cluster.num-workers", str(workers)]
        command += ["--storage", folder, "--tracking.uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--cluster.address", "local"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {VARIABLE: str(log), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = _Lines(process.stdout)
        try:
            return _watch(process, said, log, settle_s)
        finally:
            _stop(process)


def _watch(process: subprocess.Popen[str], said: _Lines, log: Path, settle_s: float) -> Start:
    start, began = Start(), time.monotonic()
    driver, stepped = psutil.Process(process.pid), 0.0
    while not stepped or time.monotonic() - stepped < settle_s:
        if process.poll() is not None or time.monotonic() - began > GIVE_UP_S:
            cure = "it ended before --settle-s, give a smaller one" if stepped else "it took no step"
            raise UsageError(f"the run can't be measured: {cure}: {' | '.join(said.lines[-3:])}")
        if not stepped:
            start.usage |= usage_of(driver)
            names = {usage.name for usage in start.usage.values()}
            now = {name for name, process_name in MILESTONES.items() if process_name in names}
            now |= {"first line"} if said.lines else set()
            if last_cursor(log) >= 0:
                stepped, now = time.monotonic(), now | {"first step"}
            cpu_s = sum(usage.cpu_s for usage in start.usage.values())
            for name in now - start.reached.keys():
                at = said.first_s if name == "first line" else time.monotonic()
                start.reached[name] = Reached(at - began, cpu_s)
        time.sleep(POLL_S)
    start.memory = usage_of(driver, with_memory=True)
    return start


class _Lines:
    """The lines that a process prints, and when the first one came."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: list[str] = []
        self.first_s = 0.0
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.first_s = self.first_s or time.monotonic()
            self.lines.append(line.rstrip())


def usage_of(root: psutil.Process, *, with_memory: bool = False) -> dict[int, Usage]:
    """Return what a process and all below it have taken so far, by process id."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended meanwhile
            times = process.cpu_times()
            pss = process.memory_full_info().pss / 1e6 if with_memory else 0.0
            found[process.pid] = Usage(process_name(process.cmdline()), times.user + times.system, pss)
    return found


def process_name(command: Sequence[str]) -> str:
    """Return what the process of a command line is, such as `ray::RayTrainWorker`."""
    line = " ".join(command)
    for pattern, name in _NAMES:
        if match := re.search(pattern, line):
            return match.expand(name)
    return Path(command[0]).name if command else "ended"


def _process_table(start: Start, settle_s: float) -> Table:
    table = Table(title="processes of the last round", title_justify="left")
    for name in ("process", "number", "CPU seconds to the first step", f"{settle_s:g} s later", "MB (PSS)"):
        table.add_column(name, justify="left" if name == "process" else "right")
    names = dict.fromkeys(usage.name for usage in (*start.memory.values(), *start.usage.values()))
    totals = [0.0, 0.0, 0.0]
    for name in sorted(names):
        first, later = ([one for one in kind.values() if one.name == name] for kind in (start.usage, start.memory))
        values = (sum(u.cpu_s for u in first), sum(u.cpu_s for u in later), sum(u.pss_mb for u in later))
        totals = [total + value for total, value in zip(totals, values, strict=True)]
        table.add_row(name, str(max(len(first), len(later))), *(f"{value:.1f}" for value in values))
    table.add_row("all", "", *(f"{value:.1f}" for value in totals))
    return table


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    if len(ordered) < 2:
        return f"{ordered[0]:.1f}" if ordered else ""
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f} to {ordered[-1]:.1f})"


def _stop(process: subprocess.Popen[str]) -> None:
    """End a run: with its processes, by its own means where it still listens."""
    if process.poll() is None:
        left = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for alive in psutil.wait_procs(left, 10)[1]:
            alive.kill()

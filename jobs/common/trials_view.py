"""All trials of a study as a table: live in a terminal, otherwise a line for each change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from jobs.common.display import progress_line, say, titled
from pipeline.run.controller_client import ControllerClient, ControllerError
from pipeline.sweep.ledger import Record
from pipeline.sweep.study import Study

LOOK_EVERY_S = 2.0
ASK_TIMEOUT_S = 0.5
MAX_ROWS = 40


class TrialsBoard(tune.Callback):
    """Shows a study while Tune runs it. Use as a context manager."""

    def __init__(self, console: Console, study: Study, records: list[Record]) -> None:
        self._console, self._study, self._records = console, study, records
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        self._looked = 0.0
        self._said: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks to restore them, and a terminal can't be."""
        return {}

    def __enter__(self) -> TrialsBoard:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._say()  # what came with Tune's last step

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show what is new; Tune calls this after each of its steps."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        running = {trial.config["number"] for trial in trials if trial.status == "RUNNING"}
        if self._live is not None:
            lines = {number: self._running_line(self._records[number]) for number in running}
            self._live.update(board_table(self._study, self._records, lines))
        else:
            self._say()

    def _say(self) -> None:
        """Print a line for each trial that has reached something."""
        if self._live is not None:
            return
        for record in self._records:
            line = said(self._study, record)
            if line and self._said.get(record.number) != line:
                self._said[record.number] = line
                say(self._console, f"{record.name}: {line}")

    def _running_line(self, record: Record) -> str:
        """Ask a trial's controller where it is."""
        try:
            status = ControllerClient.of_run(record.name, patience_s=ASK_TIMEOUT_S).status()
        except ControllerError:
            return "starting, or waiting for a start that it shares" if self._study.shared else "starting"
        line = progress_line(self._study.configure(record.point), status)
        return line.partition(": " if status.progress is None else "| ")[2] or line


def said(study: Study, record: Record) -> str:
    """Return one line on what a trial has reached, or an empty text."""
    scores = study.scores(record)
    if not scores:
        return f"failed: {record.error}" if record.state == "failed" else ""
    state = {"open": "", "finished": ", finished", "stopped": ", stopped", "failed": ", failed"}[record.state]
    return f"stage {len(scores)}/{len(study.base.stages)}, {study.score_name} {scores[-1]:.4f}{state}"


def board_table(study: Study, records: Sequence[Record], running: dict[int, str]) -> Group:
    """Return the trials as a table, the newest last."""
    done = sum(record.state != "open" for record in records)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("trial", justify="right")
    names = list(study.space) if len(study.space) <= 8 else []
    for name in names:
        table.add_column(name, justify="right")
    table.add_column(study.score_name, justify="right")
    table.add_column("state")
    for record in records[-MAX_ROWS:]:
        scores = study.scores(record)
        state = running.get(record.number) or ("waits" if record.state == "open" else record.state)
        table.add_row(
            str(record.number),
            *(shown(record.point[name]) for name in names),
            f"{scores[-1]:.4f}" if scores else "",
            state,
        )
    return titled(f"{study.base.name}: {done} trials done, {len(running)} running", table)


def shown(value: Any) -> str:
    """Return a value in a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

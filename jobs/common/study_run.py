"""Trains a study and shows its table of trials: the common part of sweeps and searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from jobs.common.display import say
from pipeline.sweep.config import StudyOptions

if TYPE_CHECKING:
    from pipeline.sweep.ledger import Ledger, Record
    from pipeline.sweep.runner import StudyResult
    from pipeline.sweep.study import Study

Files = Callable[[Sequence["Record"]], dict[str, bytes]]


def no_files(records: Sequence[Record]) -> dict[str, bytes]:
    """Return no report."""
    return {}


def train_study(
    console: Console, study: Study, options: StudyOptions, ledger: Ledger, *, files: Files = no_files
) -> StudyResult:
    """Train the trials; Ctrl-C saves what runs and ends. Says how to continue where trials are left."""
    from jobs.common.trials_view import TrialsBoard
    from pipeline.sweep.runner import StudyRunner

    with TrialsBoard(console, study, ledger.records) as board:
        result = StudyRunner(study, options, ledger, callbacks=[board], files=files).run()
    if not result.whole:
        done = sum(record.state != "open" for record in result.records)
        console.print(
            f"{study.base.name}: stopped with {done} of {options.max_trials} trials done; run it again to resume"
        )
    for record in result.records:
        if record.state == "failed":
            say(console, f"{record.name} failed, and the same command tries it again: {record.error}", style="red")
    return result

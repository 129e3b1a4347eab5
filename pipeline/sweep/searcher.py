"""Between Ray Tune and the ledger: gives Tune open trials first, then new ones, and records their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from pipeline.sweep.ledger import Record

METRICS = "metrics/"
"""Tune flattens results: so a stage's metrics begin."""


class ErrorNotes(Callback):
    """Writes down why a trial failed; its searcher hears only that it did."""

    def __init__(self, failed: Callable[[int, str], None]) -> None:
        self._failed = failed

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as the searcher does."""
        return {}

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take the last line of what went wrong."""
        lines = [line.strip() for line in str(trial.get_error()).splitlines() if line.strip()]
        self._failed(trial.config["number"], lines[-1] if lines else "")


class Silence(TrialProgressCallback):
    """Stands where Tune puts its own lines on trials, some of which come at any verbosity."""

    def _print(self, msg: str) -> None:
        """Print nothing."""


class LedgerSearcher(Searcher):
    """Tune's search algorithm."""

    def __init__(
        self,
        choose: Callable[[], Record | None],
        seal: Callable[[Record], dict[str, Any]],
        heard: Callable[[Record, bool, str], None],
    ) -> None:
        """Make one of the study's own functions.

        Args:
            choose: returns the next trial, or None when there is no more.
            seal: makes of a trial what Tune hands to it.
            heard: is told of a trial's new stages; whether it has ended, and its id in Tune.
        """
        super().__init__(metric="value", mode="max")
        self._choose, self._seal, self._heard = choose, seal, heard
        self.running: dict[str, Record] = {}
        self.failed: set[int] = set()
        """Numbers of the trials that died too often."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles what it is given, to restore it; a study resumes from its ledger."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial for Tune."""
        record = self._choose()
        if record is None:
            return str(Searcher.FINISHED)
        self.running[trial_id] = record
        return self._seal(record)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take a stage that a trial has ended."""
        self._take(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take how a trial ended."""
        if trial_id not in self.running:
            return
        self._take(trial_id, result or {})
        record = self.running.pop(trial_id)
        if error:
            self.failed.add(record.number)
        self._heard(record, True, trial_id)

    def _take(self, trial_id: str, result: dict[str, Any]) -> None:
        record = self.running[trial_id]
        if result.get("stage", 0) > len(record.stages):
            metrics = {name: value for name, value in result.items() if name.startswith(METRICS)}
            record.stages.append({name.removeprefix(METRICS): value for name, value in metrics.items()})
            self._heard(record, False, trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is written at every change."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

"""Recorded decisions, stored next to the checkpoints: a run that resumes from before them repeats them.

What was asked for and isn't carried out yet is kept with them: a controller may be lost in between.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from infra.storage.base import MissingKeyError, Storage, StorageError
from infra.storage.lease import Lease, LeaseError
from pipeline.schedule.decisions import Decision, DecisionRecord, ExtendStage, NextStage, record_of

JOURNAL_FILE = "decisions.json"
ASKED = -1
"""The cursor of what was asked for and isn't carried out yet."""
RETRY_S = 5.0
"""Pause between two tries to write decisions that storage didn't take."""
log = logging.getLogger(__name__)


class Journal:
    """The replayed decisions of a run, in the order of their cursors; a run that went back goes through them again.

    A training state holds the first k of them. What comes after those in here was decided by the same run later, before
    it rolled back, and is due again at the same cursors. New decisions come before them.

    Args:
        rows: known so far, those at the cursor `ASKED` last.
        changed: is called with all rows after each change.
    """

    def __init__(
        self, rows: Sequence[DecisionRecord] = (), changed: Callable[[list[DecisionRecord]], None] = lambda rows: None
    ) -> None:
        self._rows, self._changed = [row for row in rows if row.cursor != ASKED], changed
        self.asked = [row for row in rows if row.cursor == ASKED]

    def due(self, num_done: int, cursor: int) -> list[Decision]:
        """Return what is to be carried out again now, of a run whose state holds `num_done` of them.

        They are in the current stage: where a stage ended otherwise than before, the rows behind are gone.
        """
        return [row.decision for row in self._rows[num_done:] if row.cursor <= cursor]

    def add(self, num_done: int, rows: Sequence[DecisionRecord]) -> None:
        """Add what is carried out for the first time, behind the `num_done` that the state holds.

        A stage that ends or grows otherwise than before is another history: what came later in the old one is dropped.
        """
        if rows:
            forked = any(isinstance(row.decision, NextStage | ExtendStage) for row in rows)
            self._rows[num_done : None if forked else num_done] = rows
            self._changed([*self._rows, *self.asked])

    def keep(self, asked: Sequence[tuple[Decision, int]]) -> None:
        """Keep what was asked for, each with the stage that was on, in place of what was kept before.

        A checkpoint, a pause or a stop that isn't carried out is not for a run that is submitted again.
        """
        rows = [DecisionRecord(ASKED, stage, decision) for decision, stage in asked if decision.replayed]
        if rows != self.asked:
            self.asked = rows
            self._changed([*self._rows, *rows])


def stored_rows(storage: Storage, done: Sequence[DecisionRecord]) -> list[DecisionRecord]:
    """Return the journal that a run's storage holds, if the run whose state holds `done` continues in it; else `done`.

    What was asked for comes last, without what is carried out by now: the file may be older than the state.
    """
    try:
        found = json.loads(storage.read(JOURNAL_FILE))
        # A list alone was written by an earlier version.
        rows = [record_of(entry) for entry in (found["decisions"] if isinstance(found, dict) else found)]
    except MissingKeyError:
        return list(done)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, StorageError):
            raise
        log.warning("%s/%s can't be read: %s", storage.uri, JOURNAL_FILE, error)
        return list(done)
    carried_out = [row for row in rows if row.cursor != ASKED]
    shared = min(len(carried_out), len(done))
    if carried_out[:shared] != list(done[:shared]):
        return list(done)
    known = max(carried_out, list(done), key=len)
    times = {row.decision.time_s for row in known}
    return known + [row for row in rows if row.cursor == ASKED and row.decision.time_s not in times]


class JournalWriter:
    """Writes a journal in a thread of its own; no decision waits for storage.

    What another submission has taken over is left alone: the journal is that one's from its `open` on.
    """

    def __init__(self, storage: Storage, lease: Lease) -> None:
        self.storage, self.lease = storage, lease
        self._rows: list[DecisionRecord] | None = None
        self._busy = False
        self._lock = threading.Lock()

    def open(self, done: Sequence[DecisionRecord]) -> list[DecisionRecord]:
        """Return what `stored_rows` does, and make the journal this submission's.

        Raises:
            LeaseError: another submission has the lease.
        """
        rows = stored_rows(self.storage, done)
        self._write(rows)
        return rows

    def __call__(self, rows: list[DecisionRecord]) -> None:
        """Have these rows written soon, in place of those that wait."""
        with self._lock:
            self._rows = rows
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._work, name="journal", daemon=True).start()

    def _work(self) -> None:
        while (rows := self._next()) is not None:
            try:
                self._write(rows)
            except LeaseError as error:
                log.warning("decisions are no longer written: %s", error)
            except StorageError as error:
                log.warning("decisions wait for storage: %s", error)
                with self._lock:
                    self._rows = rows if self._rows is None else self._rows
                time.sleep(RETRY_S)

    def _write(self, rows: Sequence[DecisionRecord]) -> None:
        """Replace the journal. The lease is looked at between reading and that: a later holder's is never replaced."""
        entries = {"submission": self.lease.token, "decisions": [row.entry() for row in rows]}
        data, is_written = json.dumps(entries, indent=1).encode(), False
        while not is_written:
            try:
                etag = self.storage.read_with_etag(JOURNAL_FILE)[1]
            except MissingKeyError:
                etag = ""
            self.lease.check()
            is_written = self.storage.replace(JOURNAL_FILE, data, etag)

    def _next(self) -> list[DecisionRecord] | None:
        with self._lock:
            rows, self._rows = self._rows, None
            self._busy = rows is not None
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """What crosses to the controller's process."""
        return {"storage": self.storage, "lease": self.lease}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest

from infra.storage.base import Data
from infra.storage.lease import KEY, Lease
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage
from pipeline.control.journal import ASKED, JOURNAL_FILE, Journal, JournalWriter, stored_rows
from pipeline.schedule.decisions import DecisionRecord, ExtendStage, NextStage, SetField, Stop

ADVANCE = DecisionRecord(96, 0, NextStage(reason="asked", asked_by="ann@here", time_s=1.0))
EXTEND = DecisionRecord(240, 1, ExtendStage(epochs=1.0))
SLOWER = DecisionRecord(144, 1, SetField(name="lr_scale", value=0.5))


def test_a_run_that_went_back_repeats_its_decisions_at_their_cursors() -> None:
    seen: list[list[DecisionRecord]] = []
    journal = Journal(changed=seen.append)
    journal.add(0, [ADVANCE])
    journal.add(1, [EXTEND])
    assert journal.due(2, 500) == []
    # Killed, and back at a state of before both.
    assert journal.due(0, 72) == []
    assert journal.due(0, 96) == [ADVANCE.decision]
    # Decided anew meanwhile: comes before what is still due.
    journal.add(1, [SLOWER])
    assert journal.due(2, 216) == []
    assert journal.due(2, 240) == [EXTEND.decision]
    assert seen[-1] == [ADVANCE, SLOWER, EXTEND]


def test_a_journal_is_found_again_only_by_the_run_that_wrote_it(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert stored_rows(storage, [ADVANCE]) == [ADVANCE]
    lease = Lease(storage)
    lease.take()
    writer = pickle.loads(pickle.dumps(JournalWriter(storage, lease)))
    for _ in range(20):
        writer([ADVANCE])
    writer([ADVANCE, EXTEND])
    deadline = time.monotonic() + 10
    while stored_rows(storage, []) != [ADVANCE, EXTEND]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stored_rows(storage, [ADVANCE]) == [ADVANCE, EXTEND]
    assert stored_rows(storage, [SLOWER]) == [SLOWER]  # another timeline
    storage.write(JOURNAL_FILE, b"[{")
    assert stored_rows(storage, [ADVANCE]) == [ADVANCE]


def test_what_was_asked_for_is_kept_until_it_is_carried_out(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))

    def write(rows: list[DecisionRecord]) -> None:
        storage.write(JOURNAL_FILE, json.dumps([row.entry() for row in rows]).encode())

    journal = Journal(changed=write)
    journal.add(0, [SLOWER])
    journal.keep([(ADVANCE.decision, 1), (Stop(), 1)])
    asked = DecisionRecord(ASKED, 1, ADVANCE.decision)
    assert stored_rows(storage, [SLOWER]) == [SLOWER, asked]  # a stop is not for a run that is submitted again
    assert Journal(stored_rows(storage, [SLOWER])).asked == [asked]
    assert Journal(stored_rows(storage, [SLOWER])).due(1, 10**9) == []
    # Carried out, and in the state, before the journal was written again.
    assert stored_rows(storage, [SLOWER, ADVANCE]) == [SLOWER, ADVANCE]
    assert stored_rows(storage, [EXTEND]) == [EXTEND]  # another timeline
    journal.add(1, [ADVANCE])
    assert stored_rows(storage, [SLOWER]) == [SLOWER, ADVANCE]
    journal.keep([])
    assert json.loads(storage.read(JOURNAL_FILE)) == [SLOWER.entry(), ADVANCE.entry()]


def test_decisions_that_storage_did_not_take_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.control.journal.RETRY_S", 0.05)
    place = tmp_path / "runs"
    storage = open_storage(str(place))
    lease = Lease(storage)
    lease.take()
    held = place.rename(tmp_path / "held")
    place.write_text("a file where the folder should be")
    writer = JournalWriter(storage, lease)
    writer([ADVANCE])
    time.sleep(0.2)
    place.unlink()
    held.rename(place)
    deadline = time.monotonic() + 10
    while stored_rows(storage, []) != [ADVANCE]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_was_taken_over_leaves_the_journal_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage(str(tmp_path))
    mine, other = Lease(storage), Lease(storage)
    writer = JournalWriter(storage, mine)
    mine.take()
    storage.delete(KEY)  # as if it had expired
    other.take()
    JournalWriter(storage, other)([EXTEND])
    writer([ADVANCE])
    deadline = time.monotonic() + 10
    while "taken over" not in caplog.text or stored_rows(storage, []) != [EXTEND]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class WrittenLate(LocalStorage):
    """Has another submission take the run over just before the first write."""

    other: Lease | None = None

    def write_if_match(self, key: str, data: Data, etag: str) -> str | None:
        if key == JOURNAL_FILE and self.other is None:
            self.other = Lease(LocalStorage(self.root))
            self.delete(KEY)  # as if it had expired
            self.other.take()
            assert JournalWriter(self.other.storage, self.other).open([]) == [ADVANCE]
        return super().write_if_match(key, data, etag)


def test_a_write_that_was_paused_does_not_replace_a_later_submissions_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = WrittenLate(tmp_path)
    storage.write(JOURNAL_FILE, json.dumps([ADVANCE.entry()]).encode())  # as an earlier version did
    mine = Lease(storage)
    mine.take()
    JournalWriter(storage, mine)([ADVANCE, EXTEND])
    deadline = time.monotonic() + 10
    while "taken over" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stored_rows(storage, []) == [ADVANCE]

"""The trials of a study in its storage, from which it resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from infra.storage.base import MissingKeyError, Storage
from pipeline.run.provenance import breaking, described, differences
from pipeline.sweep.config import PLAN_FILE
from pipeline.sweep.strategy import Point, point_key

FOLDER = "trials"

State = Literal["open", "finished", "stopped", "failed"]


class StudyError(ValueError):
    """The study can't continue as asked."""


@dataclass(kw_only=True, slots=True)
class Record:
    """A trial: what it tries, and what that gave."""

    number: int
    """Counted from 0, in the order in which they were chosen."""
    name: str
    """Name of its training run."""
    point: Point
    """Values that it tries, by name."""
    state: State = "open"
    """open: to be trained or in training; stopped: ended by the scheduler; failed: it died too often."""
    stages: list[dict[str, float]] = field(default_factory=list)
    """Metrics and times of each stage that is done."""
    figures: dict[str, float] = field(default_factory=dict)
    """What is known of the point without training, such as parameters."""
    error: str = ""
    """Why it failed."""


class Ledger:
    """The records of a study."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.records: list[Record] = []

    def open(self, plan: Mapping[str, Any], *, dry_run: bool = False) -> None:
        """Read what is there, and refuse to mix it with another plan; failed trials are open again.

        Raises:
            StudyError: the study was begun with another config or space.
        """
        try:
            begun = json.loads(self.storage.read(PLAN_FILE))
        except MissingKeyError:
            if not dry_run:
                self.storage.write(PLAN_FILE, json.dumps(dict(plan), indent=1).encode())
            return
        changes = differences(begun, json.loads(json.dumps(dict(plan))))
        changes = {key: change for key, change in changes.items() if _matters(key, change)}
        if changes:
            raise StudyError(
                f"{self.storage.uri} was begun with other settings ({described(changes)}): start a new one with "
                "--name, or give the same settings to continue"
            )
        self.records = read_records(self.storage)
        for record in self.records:
            if record.state == "failed":
                record.state, record.error = "open", ""

    def find(self, point: Point) -> Record | None:
        """Return the trial of this very point."""
        key = point_key(point)
        return next((record for record in self.records if point_key(record.point) == key), None)

    def add(self, record: Record) -> None:
        """Take up a new trial."""
        assert record.number == len(self.records)
        self.records.append(record)
        self.write(record)

    def write(self, record: Record) -> None:
        """Write a trial's record."""
        self.storage.write(f"{FOLDER}/{record.number:05d}.json", json.dumps(asdict(record), indent=1).encode())


def _matters(key: str, change: tuple[Any, Any]) -> bool:
    """Say whether a study can't resume with this change: as for a run, but its data must stay as well."""
    field = key.removeprefix("config.")
    return field == key or field in ("data.train", "data.val") or bool(breaking({field: change}))


def read_records(storage: Storage) -> list[Record]:
    """Return the trials of a study, by number."""
    return [Record(**json.loads(storage.read(key))) for key in sorted(storage.list(f"{FOLDER}/"))]

"""Items for the tracking server that it has not confirmed yet."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from infra.storage.base import checked_key

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 << 20
"""Content of unsent files that is held in memory at most."""
LABELS = ("params", "tags", "inputs", "models")
"""Kinds of named texts: the last two are datasets and checkpoints, as JSON."""


@dataclass(frozen=True, slots=True)
class Row:
    """Metrics of one step. Sent again, it is the same row: the server knows it by key, time, step and value."""

    step: int
    time_ms: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class File:
    """An artifact."""

    path: str
    content: bytes


class Outbox:
    """Rows, tags, params and files in wait. Thread-safe; no call waits for anything but another call.

    Rows are confirmed in the order in which they were added, so at any time the server holds, for each metric, exactly
    its steps up to some last one. That makes "is it sent?" one comparison: a row of a step at or below the last one
    of its metric, in the server or in here, is a repetition by a process that went back to a checkpoint.
    """

    def __init__(self, max_values: int) -> None:
        self.dropped = 0
        self._max_values = max_values
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque()
        self._num_values = 0
        self._last_step: dict[str, int] = {}
        self._labels: dict[str, dict[str, str]] = {kind: {} for kind in LABELS}
        self._files: dict[str, File] = {}

    def __len__(self) -> int:
        with self._lock:
            return self._num_values + sum(map(len, self._labels.values())) + len(self._files)

    def add_row(self, row: Row) -> None:
        """Add metrics of a step, without those that have this step or a later one already."""
        with self._lock:
            last = self._last_step
            values = {key: value for key, value in row.values.items() if row.step > last.get(key, -1)}
            if not values:
                return
            if self._num_values + len(values) > self._max_values:
                self._drop(len(values))
                return
            last.update(dict.fromkeys(values, row.step))
            self._num_values += len(values)
            self._rows.append(Row(row.step, row.time_ms, values))

    def rows(self, max_values: int) -> list[Row]:
        """Return the oldest rows, at most `max_values` values together, or the oldest row alone."""
        with self._lock:
            count = values = 0
            for row in self._rows:
                values += len(row.values)
                if values > max_values and count:
                    break
                count += 1
            return list(islice(self._rows, count))

    def confirm_rows(self, rows: list[Row]) -> None:
        """Forget the oldest rows, which `rows` returned."""
        with self._lock:
            for row in rows:
                assert self._rows.popleft() is row
                self._num_values -= len(row.values)

    def settle(self, sent_steps: Mapping[str, int]) -> None:
        """Learn the last step that the server has of each metric, and forget what is a repetition of it.

        Only for the thread that confirms. The long part is done without the lock: `add_row` never waits for it.
        """
        with self._lock:
            waiting = list(self._rows)
        last = dict(sent_steps)
        kept = _without_repetitions(waiting, last)
        num_values = sum(len(row.values) for row in kept)
        with self._lock:
            added = _without_repetitions(islice(self._rows, len(waiting), None), last)
            self._rows = deque(kept + added)
            self._num_values = num_values + sum(len(row.values) for row in added)
            self._last_step = _later(last, self._last_step)

    @property
    def num_metrics(self) -> int:
        """Metrics that have had a step."""
        return len(self._last_step)

    def last_step(self, names: Iterable[str]) -> int:
        """Return the last step of the metrics of these names; -1 without one."""
        with self._lock:
            return max((self._last_step.get(name, -1) for name in names), default=-1)

    def add_labels(self, kind: str, labels: Mapping[str, str]) -> None:
        """Add to one of `LABELS`; a newer value of a name takes the older one's place."""
        with self._lock:
            self._labels[kind].update(labels)

    def labels(self, kind: str) -> dict[str, str]:
        """Return what waits of one of `LABELS`."""
        with self._lock:
            return dict(self._labels[kind])

    def confirm_labels(self, kind: str, sent: Mapping[str, str]) -> None:
        """Forget labels, unless they changed meanwhile."""
        with self._lock:
            waiting = self._labels[kind]
            self._labels[kind] = {name: value for name, value in waiting.items() if sent.get(name) != value}

    def add_file(self, file: File) -> None:
        """Add a file, in place of a waiting one of the same path."""
        with self._lock:
            waiting = [other.content for path, other in self._files.items() if path != file.path]
            if sum(map(len, [*waiting, file.content])) > MAX_FILE_BYTES:
                self._drop(1)
                return
            self._files[file.path] = file

    def files(self) -> list[File]:
        """Return the waiting files."""
        with self._lock:
            return list(self._files.values())

    def confirm_file(self, file: File) -> None:
        """Forget a file, unless it was replaced meanwhile."""
        with self._lock:
            if self._files.get(file.path) is file:
                del self._files[file.path]

    def dump(self) -> bytes:
        """Return all that waits, as JSON lines."""
        with self._lock:
            rows, files = list(self._rows), list(self._files.values())
            labels = [{kind: labels} for kind, labels in self._labels.items() if labels]
        lines = [{"step": row.step, "time_ms": row.time_ms, "metrics": row.values} for row in rows]
        return "".join(json.dumps(line) + "\n" for line in [*labels, *lines, *map(_file_line, files)]).encode()

    def load(self, data: bytes) -> None:
        """Put in front what an earlier process dumped. A damaged line costs that line."""
        earlier = Outbox(self._max_values)
        for line in data.splitlines():
            try:
                earlier._load_line(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                log.warning("tracking: skipped a corrupt line of the spool")
        self.resume(earlier._rows, {})
        with self._lock:
            self._labels = {kind: earlier._labels[kind] | labels for kind, labels in self._labels.items()}
            self._files = earlier._files | self._files

    def resume(self, rows: Iterable[Row], last_steps: Mapping[str, int]) -> None:
        """Put in front what an earlier process sent last, and forget repetitions of it and of `last_steps`.

        Only for the thread that confirms.
        """
        last = dict[str, int]()
        front = _without_repetitions(rows, last)
        last = _later(last, last_steps)
        with self._lock:
            kept = front + _without_repetitions(self._rows, last)
            self._rows = deque(kept)
            self._num_values = sum(len(row.values) for row in kept)
            self._last_step = _later(last, self._last_step)

    def _load_line(self, line: dict[str, Any]) -> None:
        if "metrics" in line:
            values = {str(key): float(value) for key, value in line["metrics"].items()}
            self._rows.append(Row(int(line["step"]), int(line["time_ms"]), values))
        elif "file" in line:
            path = checked_key(line["file"])
            self._files[path] = File(path, base64.b64decode(line["data"]))
        for kind in self._labels.keys() & line.keys():
            self._labels[kind].update({str(name): str(value) for name, value in line[kind].items()})

    def _drop(self, count: int) -> None:
        if not self.dropped:
            log.warning("tracking: the server has been unavailable for too long; new items are dropped to save memory")
        self.dropped += count


def _without_repetitions(rows: Iterable[Row], last: dict[str, int]) -> list[Row]:
    """Return the rows without steps at or below the `last` one of their metric, and move `last` on."""
    kept = []
    for row in rows:
        values = {key: value for key, value in row.values.items() if row.step > last.get(key, -1)}
        if values:
            last.update(dict.fromkeys(values, row.step))
            kept.append(row if len(values) == len(row.values) else Row(row.step, row.time_ms, values))
    return kept


def _later(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return the later step of each metric."""
    return {key: max(one.get(key, -1), other.get(key, -1)) for key in {**one, **other}}


def _file_line(file: File) -> dict[str, str]:
    """Return a file with its content: a path would have the next process send whatever file a spool names."""
    return {"file": file.path, "data": base64.b64encode(file.content).decode()}

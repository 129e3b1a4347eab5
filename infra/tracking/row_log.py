"""Which rows were given to MLflow, written down before they are sent: a row that is sent again is the same row.

MLflow takes two points of a step for one if their time and value are the same. A throughput that is measured again is
another value. So the rows of each request are written here first, by whoever may: a process that continues after a kill
finds them and sends those, not its own; one that was paused, and whose run another process continues, can't write
here any more and so sends nothing but what the other sends as well.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infra.storage.base import MissingKeyError, Storage
from infra.tracking.outbox import Row

log = logging.getLogger(__name__)

LOG_FILE = "tracking/sending.json"


class TakenOverError(Exception):
    """Another process keeps the run's record now."""


class OwnedObject:
    """An object that is written by its last owner only: by conditional writes, which say who the owner is.

    Args:
        storage: of the run.
        key: of the object.
        epoch: of the writer; None: that of the object, as where a run's record is only closed.
    """

    def __init__(self, storage: Storage, key: str, epoch: int | None) -> None:
        self._storage, self._key, self._epoch, self._etag = storage, key, epoch, ""
        self._owner = uuid.uuid4().hex

    def read(self) -> bytes:
        """Return the content, empty where there is none. Raises `TakenOverError` if its owner has a later epoch."""
        try:
            data, self._etag = self._storage.read_with_etag(self._key)
        except MissingKeyError:
            data, self._etag = b"", ""
        owner, content = _split(data)
        epoch = int(owner.get("epoch", 0))
        if self._epoch is None:
            self._epoch = epoch
        if epoch > self._epoch:
            raise TakenOverError(f"{self._storage.location(self._key)} is written by a newer worker group")
        return content

    def replace(self, content: bytes) -> bool:
        """Write new content; False: another process has written since this one read or wrote last."""
        data = json.dumps({"epoch": self._epoch or 0, "owner": self._owner}).encode() + b"\n" + content
        while not self._put(data):
            if not self.is_mine():  # else it was this process's earlier write, whose answer was lost
                return False
        return True

    def is_mine(self) -> bool:
        """Say whether this process has written it last."""
        try:
            data, etag = self._storage.read_with_etag(self._key)
        except MissingKeyError:
            return False
        if _split(data)[0].get("owner") != self._owner:
            return False
        self._etag = etag
        return True

    def _put(self, data: bytes) -> bool:
        if self._etag:
            etag = self._storage.write_if_match(self._key, data, self._etag)
            self._etag = etag or self._etag
            return etag is not None
        written = self._storage.write_if_absent(self._key, data)
        return written and self.is_mine()  # for its ETag


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the line that says who the owner is, and the rest; none in objects of earlier versions."""
    line, _, rest = data.partition(b"\n")
    if line.startswith(b'{"epoch": '):
        try:
            return json.loads(line), rest
        except ValueError:
            log.warning("tracking: a corrupt first line; all of it is read as content")
    return {}, data


@dataclass(slots=True)
class Sent:
    """What was given to an MLflow run."""

    run_id: str = ""
    """The MLflow run."""
    last_steps: dict[str, int] = field(default_factory=dict)
    """Of each metric, the last step."""
    rows: list[Row] = field(default_factory=list)
    """Those of the last request, which may not have arrived; all before have."""
    status: str = ""
    """The status with which the record was ended, when MLflow had all of it; empty while it goes on."""


class RowLog:
    """The log of one process. Only for the thread that sends."""

    def __init__(self, storage: Storage, epoch: int | None) -> None:
        self._object = OwnedObject(storage, LOG_FILE, epoch)
        self._sent = Sent()

    def open(self) -> Sent:
        """Become the log's owner; return what earlier ones have sent. Raises `TakenOverError`."""
        while True:
            self._sent = replace(_parsed(self._object.read()), status="")
            if self._object.replace(_content(self._sent)):
                return self._sent

    def add(self, run_id: str, rows: Sequence[Row]) -> None:
        """Write down what is sent to an MLflow run next, all before having arrived. Raises `TakenOverError`."""
        last = dict(self._sent.last_steps) if run_id == self._sent.run_id else {}
        last |= {name: row.step for row in rows for name in row.values}
        self._sent = Sent(run_id, last, list(rows))
        if not self._object.replace(_content(self._sent)):
            raise TakenOverError("another process keeps the run's record now")

    def end(self, status: str) -> None:
        """Write down that MLflow has all of the record, its end too, unless another process keeps it now."""
        self._object.replace(_content(replace(self._sent, status=status)))

    def check(self) -> None:
        """Raise `TakenOverError` if another process owns the log."""
        if not self._object.is_mine():
            raise TakenOverError("another process keeps the run's record now")


def ended_status(storage: Storage) -> str:
    """Return the status with which a run's record was ended, when MLflow had all of it; empty while it goes on."""
    return _parsed(OwnedObject(storage, LOG_FILE, None).read()).status


def _content(sent: Sent) -> bytes:
    rows = [[row.step, row.time_ms, row.values] for row in sent.rows]
    values = {"run_id": sent.run_id, "last_steps": sent.last_steps, "rows": rows, "status": sent.status}
    return json.dumps(values).encode()


def _parsed(content: bytes) -> Sent:
    if not content:
        return Sent()
    try:
        values: dict[str, Any] = json.loads(content)
        rows = [Row(int(step), int(time_ms), dict(metrics)) for step, time_ms, metrics in values["rows"]]
        return Sent(str(values["run_id"]), dict(values["last_steps"]), rows, str(values.get("status", "")))
    except (ValueError, TypeError, KeyError):
        log.warning("tracking: the log of sent rows is corrupt; MLflow is asked which rows it has")
        return Sent()

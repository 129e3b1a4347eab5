"""The part of a run's record that outlives its processes: its identity, and what MLflow has not confirmed."""

from __future__ import annotations

import json
import logging
import threading
import uuid

from infra.storage.base import MissingKeyError, Storage
from infra.tracking.outbox import Outbox
from infra.tracking.row_log import OwnedObject

log = logging.getLogger(__name__)

KEY_FILE = "tracking/run.json"
SPOOL_FILE = "tracking/unsent.jsonl"


class Spool:
    """The tracking files of a run's own folder. Thread-safe."""

    def __init__(self, storage: Storage, outbox: Outbox, epoch: int | None) -> None:
        self._storage, self._outbox = storage, outbox
        self._object = OwnedObject(storage, SPOOL_FILE, epoch)
        self._lock = threading.Lock()
        self._loaded = self._holds_any = False

    @property
    def location(self) -> str:
        """Where unsent things are kept, for messages."""
        return self._storage.location(SPOOL_FILE)

    def run_key(self, run_name: str) -> str:
        """Return the identity that ties the MLflow run to the run's storage: gone with it, unlike the run's name."""
        key = uuid.uuid4().hex
        record = json.dumps({"key": key, "name": run_name}).encode()
        self._storage.write_if_absent(KEY_FILE, record)
        if found := _key_in(self._storage.read(KEY_FILE)):
            return found
        log.warning("tracking: %s is corrupt; a new record is started", self._storage.location(KEY_FILE))
        self._storage.write(KEY_FILE, record)
        return key

    def load(self) -> None:
        """Put into the outbox, once, what an earlier process left. Raises `StorageError` and `TakenOverError`."""
        with self._lock:
            self._load()

    def write(self, status: str) -> None:
        """Keep what the outbox holds, and the end status that MLflow does not know yet.

        Raises:
            StorageError: it can't be written.
            TakenOverError: another process keeps the run's record now.
        """
        with self._lock:
            self._load()  # else it would be lost under what is written now
            unsent = self._outbox.dump()
            if status:
                unsent += _status_line(status)
            if unsent or self._holds_any:
                self._replace(unsent)

    def clear(self) -> None:
        """Forget what MLflow has by now: a later process would send it over what has been sent since.

        Raises:
            StorageError: it can't be written.
            TakenOverError: another process keeps the run's record now.
        """
        with self._lock:
            if self._holds_any and not len(self._outbox):
                self._replace(b"")

    def _replace(self, unsent: bytes) -> None:
        while not self._object.replace(unsent):  # empty, not deleted: by now it might be another's
            self._object.read()
        self._holds_any = bool(unsent)

    def _load(self) -> None:
        if self._loaded:
            return
        if left := self._object.read():
            self._outbox.load(left)
            self._holds_any = True
        self._loaded = True


def stored_key(storage: Storage) -> str:
    """Return the identity that a run's folder holds; empty if none."""
    try:
        return _key_in(storage.read(KEY_FILE))
    except MissingKeyError:
        return ""


def _key_in(record: bytes) -> str:
    """Return the identity in a record; empty where it holds none, since it becomes a part of a query."""
    try:
        key = str(json.loads(record)["key"])
    except (ValueError, KeyError, TypeError):
        return ""
    return key if key.isalnum() else ""


def spooled_status(storage: Storage) -> str | None:
    """Return None without a spool, else the end status in it: `KILLED` where the run could not say one."""
    lines = OwnedObject(storage, SPOOL_FILE, None).read().splitlines(keepends=True)
    if not lines:
        return None
    return next((status for status in ("FINISHED", "FAILED") if _status_line(status) in lines[-1:]), "KILLED")


def _status_line(status: str) -> bytes:
    return json.dumps({"status": status}).encode() + b"\n"

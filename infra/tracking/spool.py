"""What of a run's record outlives its processes: who the run is, and what MLflow has not confirmed."""

from __future__ import annotations

import json
import logging
import threading
import uuid

from infra.storage.base import MissingKeyError, Storage
from infra.tracking.outbox import Outbox

log = logging.getLogger(__name__)

KEY_FILE = "tracking/run.json"
SPOOL_FILE = "tracking/unsent.jsonl"


class Spool:
    """The tracking files of a run's own folder; without a storage, nothing outlives the process. Thread-safe."""

    def __init__(self, storage: Storage | None, outbox: Outbox) -> None:
        self._storage, self._outbox = storage, outbox
        self._lock = threading.Lock()
        self._loaded = self._exists = False

    @property
    def location(self) -> str:
        """Where unsent things are kept, for messages."""
        return self._storage.location(SPOOL_FILE) if self._storage else "memory only"

    def run_key(self, run_name: str) -> str:
        """Return the identity that ties the MLflow run to the run's storage: gone with it, unlike the run's name."""
        key = uuid.uuid4().hex
        if self._storage is None:
            return key
        record = json.dumps({"key": key, "name": run_name}).encode()
        self._storage.write_if_absent(KEY_FILE, record)
        if found := _key_in(self._storage.read(KEY_FILE)):
            return found
        log.warning("tracking: %s is damaged; a new record is started", self._storage.location(KEY_FILE))
        self._storage.write(KEY_FILE, record)
        return key

    def load(self) -> None:
        """Put into the outbox, once, what an earlier process left. Raises `StorageError`."""
        with self._lock:
            self._load()

    def write(self, status: str) -> None:
        """Keep what the outbox holds, and the end status that MLflow does not know yet. Raises `StorageError`."""
        if self._storage is None:
            return
        with self._lock:
            self._load()  # else it would be lost under what is written now
            unsent = self._outbox.dump()
            if status:
                unsent += _status_line(status)
            if unsent:
                self._storage.write(SPOOL_FILE, unsent)
            elif self._exists:
                self._storage.delete(SPOOL_FILE)
            self._exists = bool(unsent)

    def _load(self) -> None:
        if self._loaded:
            return
        if self._storage is not None:
            try:
                self._outbox.load(self._storage.read(SPOOL_FILE))
                self._exists = True
            except MissingKeyError:
                pass
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
    try:
        lines = storage.read(SPOOL_FILE).splitlines(keepends=True)
    except MissingKeyError:
        return None
    return next((status for status in ("FINISHED", "FAILED") if _status_line(status) in lines[-1:]), "KILLED")


def _status_line(status: str) -> bytes:
    return json.dumps({"status": status}).encode() + b"\n"

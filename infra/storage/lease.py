"""One submission of a run at a time: a lease in the run's storage that expires when its holder no longer renews it.

The lease is one object, made and replaced by conditional writes, so of two submissions at once exactly one gets it. No
clocks are compared: who finds a lease waits and looks. If it changes, its holder lives, and the second submission is
refused. If it stays the same for its whole term, the holder is gone, and the lease is taken over. On the holder's own
machine that is known at once, by its process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from infra.storage.base import MissingKeyError, Storage, StorageError, probe_key

log = logging.getLogger(__name__)

KEY = ".lease"
TERM_S = 30.0
"""A lease that was not renewed for this long may be taken over."""
RENEW_S = 5.0
"""Pause between two renewals."""
LOOK_S = 0.5
"""Pause between two looks at another's lease."""
_RELEASED = b'{"released": true}'
"""Content of a lease that was given back."""


class LeaseError(ValueError):
    """The run is in progress elsewhere."""


class Lease:
    """The right to train a run. Taken by the driver, then renewed by the run's controller."""

    def __init__(self, storage: Storage, *, token: str = "") -> None:
        self.storage, self.token = storage, token or uuid.uuid4().hex
        self._ended = threading.Event()

    def __reduce__(self) -> tuple[object, ...]:
        return _with_token, (self.storage, self.token)

    def take(self) -> None:
        """Take the lease; wait for one that nobody renews to expire.

        Raises:
            LeaseError: somebody holds it and renews it.
        """
        while True:
            # Looked at first: where a server ignores the condition, only a true race is lost, not every submission.
            if self.storage.exists(KEY):
                if self._take_over():
                    return
            elif self.storage.write_if_absent(KEY, self._record()):
                return

    def renew(self) -> None:
        """Write the lease again. Raises `LeaseError` when another submission has taken it over."""
        while not self.storage.write_if_match(KEY, self._record(), self._mine()):
            pass  # the driver, which holds the same lease, renewed it in between

    def check(self) -> None:
        """Raise `LeaseError` unless this submission holds the lease."""
        self._mine()

    def _mine(self) -> str:
        """Return the ETag of the lease if it is this submission's, else raise `LeaseError`."""
        try:
            found, etag = self.storage.read_with_etag(KEY)
        except MissingKeyError:
            found, etag = _RELEASED, ""
        if found == _RELEASED:
            raise LeaseError(f"{self.storage.uri}: the lease of this run was released or deleted")
        if _parsed(found).get("token") != self.token:
            raise LeaseError(f"{self.storage.uri} was taken over by another submission of this run")
        return etag

    def keep(self, lost: Callable[[str], None]) -> None:
        """Renew in a thread until `release`; call `lost` with a line when another has taken the lease over."""
        threading.Thread(target=self._keep, args=(lost,), name="lease", daemon=True).start()

    def rest(self) -> None:
        """Stop renewing: another process with this lease does."""
        self._ended.set()

    def release(self) -> None:
        """Give the lease back, if it is still held. Not by deleting it: that could be another's by then."""
        self.rest()
        try:
            while not self.storage.write_if_match(KEY, _RELEASED, self._mine()):
                pass
        except LeaseError:
            log.debug("the lease is another's")
        except StorageError:  # it expires
            log.debug("the lease could not be released")

    def _keep(self, lost: Callable[[str], None]) -> None:
        while not self._ended.is_set():
            try:
                self.renew()
            except LeaseError as error:
                if not self._ended.is_set():
                    lost(str(error))
                return
            except StorageError as error:  # where it is away from here alone, `check` keeps us from writing later
                log.warning("the lease can't be renewed now: %s", error)
            self._ended.wait(RENEW_S)

    def _take_over(self) -> bool:
        """Watch another's lease and take it once it has expired. False: it is gone, and may be created again."""
        first = ""
        looks_until = time.monotonic() + TERM_S
        while True:
            try:
                found, etag = self.storage.read_with_etag(KEY)
            except MissingKeyError:
                return False
            holder = _parsed(found)
            first = first or etag
            if etag != first and found != _RELEASED:
                raise LeaseError(_refusal(self.storage, holder))
            if found == _RELEASED or time.monotonic() > looks_until or _is_gone(holder):
                return bool(self.storage.write_if_match(KEY, self._record(), etag))
            time.sleep(LOOK_S)

    def _record(self) -> bytes:
        values = {
            "token": self.token,
            "renewal": uuid.uuid4().hex,  # makes each renewal another content, and so another ETag
            "renewed": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "start_ticks": _start_ticks(os.getpid()),
        }
        return json.dumps(values).encode()


def is_held(storage: Storage) -> bool:
    """Say whether a run's lease was taken and not given back; its holder may be gone."""
    try:
        return storage.read(KEY) != _RELEASED
    except MissingKeyError:
        return False


def _with_token(storage: Storage, token: str) -> Lease:
    return Lease(storage, token=token)


def check_conditional_writes(storage: Storage) -> bool:
    """Say whether the storage honours conditional writes; some servers that speak S3's protocol ignore them."""
    probe = probe_key()
    try:
        first, second = storage.write_if_absent(probe, b"1"), storage.write_if_absent(probe, b"2")
        wrong = storage.write_if_match(probe, b"3", '"00000000000000000000000000000000"')
        return first and not second and wrong is None and storage.read(probe) == b"1"
    finally:
        storage.delete(probe)


def _refusal(storage: Storage, holder: dict[str, Any]) -> str:
    where = f"{holder.get('host', 'another machine')} (process {holder.get('pid', '?')})"
    return f"{storage.uri} is being trained by {where}: wait for it, stop it, or start a new run with another --name"


def _parsed(record: bytes) -> dict[str, Any]:
    try:
        values = json.loads(record)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _machine() -> str:
    """Return what tells this boot of this machine, and this container, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex  # unknown: never equal


def _is_gone(holder: dict[str, Any]) -> bool:
    """Say whether the holder is a process of this machine that has ended."""
    if holder.get("machine") != _machine():
        return False
    try:
        pid = int(holder["pid"])
        ticks, is_zombie = _start_ticks(pid), psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True
    except (KeyError, TypeError, ValueError, OSError, psutil.Error):
        return False
    known = holder.get("start_ticks")
    return is_zombie or (known is not None and ticks != known)  # another process may have got the number since


def _start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot.

    Not a time of day, such as `psutil.Process.create_time`: that one moves with the machine's clock, and a live holder
    would look like another process after a clock step. Field 22 of `/proc/PID/stat` (proc_pid_stat(5)), counted from
    behind the command's name, which may hold spaces and brackets.
    """
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])

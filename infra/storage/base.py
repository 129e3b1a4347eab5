"""The interface of every storage, and its error types."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from infra.storage.failures import FailureClass

Data = bytes | bytearray | memoryview
PROBE = ".probe"
"""Name of an object that is written to try a folder, alone or with more after a hyphen."""


class StorageError(ValueError):
    """Storage cannot do what was asked; one line that says where, why and what to do. Never holds a secret."""

    failure = FailureClass.OPERATOR


class StorageAwayError(StorageError):
    """Storage was away, busy or full for longer than a call waits; the same call may succeed later."""

    failure = FailureClass.TRANSIENT


class MissingKeyError(StorageError):
    """The object that was asked for is not there."""


class ChangedObjectError(StorageError):
    """The object is not what it was when it was looked at."""

    failure = FailureClass.DATA


class Storage(ABC):
    """A folder of objects under one URI. Keys are relative to it, with `/` between their parts.

    An object appears whole or not at all, and a reader never sees half of a write. Every method may be called from
    any thread. A storage pickles as its URI: a worker that gets one opens it again with its own credentials.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def __reduce__(self) -> tuple[object, ...]: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def location(self, key: str) -> str:
        """Return the full URI of `key`."""
        return f"{self.uri}/{key}" if key else self.uri

    def where(self, key: str) -> str:
        """Return what a message calls `key`: its location, that of a probe's folder, of which a user knows."""
        folder, _, name = key.rpartition("/")
        return self.location(folder if name.partition("-")[0] == PROBE else key)

    @abstractmethod
    def sub(self, prefix: str) -> Storage:
        """Return the storage of the folder `prefix` inside this one."""

    @abstractmethod
    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and the tag of this very content. Raises `MissingKeyError`."""

    def read(self, key: str) -> bytes:
        """Return an object's bytes. Raises `MissingKeyError`."""
        return self.read_with_etag(key)[0]

    @abstractmethod
    def write(self, key: str, *data: Data) -> None:
        """Write an object of one or more buffers, in place of one that is there; none of them is copied whole."""

    @abstractmethod
    def write_if_absent(self, key: str, data: Data) -> bool:
        """Write an object unless there is one; of several writers exactly one gets True."""

    @abstractmethod
    def write_if_match(self, key: str, data: Data, etag: str) -> str | None:
        """Replace an object only if its tag is still `etag`; return the new tag, or None if it was not."""

    def replace(self, key: str, data: Data, etag: str) -> bool:
        """Write an object if its tag is still `etag` (empty: if there is none); say whether it was."""
        return self.write_if_match(key, data, etag) is not None if etag else self.write_if_absent(key, data)

    @abstractmethod
    def upload(self, key: str, path: str | Path) -> None:
        """Write a local file as an object, without reading it whole into memory."""

    @abstractmethod
    def download(self, key: str, path: str | Path) -> None:
        """Write an object into a local file, which appears whole or not at all. Raises `MissingKeyError`."""

    @abstractmethod
    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the keys that begin with `prefix`, in order, with their sizes in bytes.

        A name whose last part begins with a dot is the storage's own (probes, locks, unfinished writes): not listed.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Say whether there is an object of this key."""

    @abstractmethod
    def delete(self, *keys: str) -> None:
        """Remove objects; one that is not there is no error."""

    @abstractmethod
    def drop_unfinished(self, older_than_s: float) -> int:
        """Remove what killed writers left of objects that never appeared, which no list shows; return how many.

        Args:
            older_than_s: what was begun (in a folder: changed) later than this long ago may be a living writer's.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """Write, read and remove a small object; raise `StorageError` within seconds if that cannot be done."""


def probe_key() -> str:
    """Return the key of a probe that nobody else writes."""
    return f"{PROBE}-{uuid.uuid4().hex}"


def checked_key(key: str) -> str:
    """Return `key` if it stays inside its storage, else raise `StorageError`."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or key.endswith("/") or ".." in parts or "\\" in key or "\0" in key:
        raise StorageError(f"key {key!r}: expected a relative name such as 'a/b', without '..' and '\\'")
    return key

"""Who may write a run's checkpoints, and which of them are valid: one object, replaced by conditional writes only.

Every worker group claims an epoch before it reads what to resume from: one above the last. From then on a group of an
earlier epoch, as one that was paused, can put nothing into the head any more, whatever it has checked before. Its files
lie in folders that carry its epoch, so they never replace another's.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, replace

from infra.storage.base import MissingKeyError, Storage, StorageError
from infra.storage.failures import FailureClass
from infra.storage.lease import Lease

PREFIX = "checkpoints"
MANIFEST = "manifest.json"
HEAD = ".head"
"""Beside the checkpoints' folder."""


class FencedError(ValueError):
    """A newer worker group, or another submission, writes this run's checkpoints now."""

    failure = FailureClass.TRANSIENT  # of this group alone: the run goes on by the newer one


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The valid checkpoints of a run and the last writer's claim."""

    epoch: int = 0
    """Of the worker group that may write; 0: none has claimed one, as in runs of earlier versions."""
    submission: str = ""
    """Token of the lease that the epoch was claimed under."""
    group: int = 0
    """Number of the worker group within its submission."""
    keys: tuple[str, ...] = ()
    """Folders of the valid checkpoints, oldest first."""


def checkpoint_key(cursor: int) -> str:
    """Return the folder of a checkpoint that no epoch was claimed for, relative to the run's storage."""
    return f"{PREFIX}/{cursor:015d}"


def unique_key(cursor: int, epoch: int) -> str:
    """Return a folder for a checkpoint that no other writer, nor this one again, will use."""
    return f"{checkpoint_key(cursor)}-{epoch:06d}-{uuid.uuid4().hex[:8]}"


def cursor_of(key: str) -> int | None:
    """Return the cursor in a checkpoint's folder name; None: it is no such name."""
    cursor = key.rpartition("/")[2].partition("-")[0]
    return int(cursor) if cursor.isdigit() else None


def epoch_of(key: str) -> int:
    """Return the epoch in a checkpoint's folder name; 0 in those of earlier versions."""
    parts = key.rpartition("/")[2].split("-")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0


def read_head(storage: Storage) -> tuple[Head, str]:
    """Return the head and its ETag. A run of an earlier version has none: then all with a manifest, and no ETag.

    Raises:
        StorageError: it can't be read, or is none of this version's.
    """
    try:
        data, etag = storage.read_with_etag(HEAD)
    except MissingKeyError:
        return Head(keys=_with_manifest(storage)), ""
    try:
        values = json.loads(data)
        return Head(**values | {"keys": tuple(values["keys"])}), etag
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{storage.location(HEAD)} can't be read: use the version that wrote it") from error


def replace_head(storage: Storage, head: Head, etag: str) -> bool:
    """Write the head if it is still the one of this ETag (empty: none); False: another writer was first."""
    data = json.dumps(asdict(head), indent=1)
    if not etag:
        return storage.write_if_absent(HEAD, data.encode())
    return storage.write_if_match(HEAD, data.encode(), etag) is not None


def claim(storage: Storage, lease: Lease, group: int) -> int:
    """Return a worker group's epoch; from now on no group of an earlier one can make a checkpoint valid.

    The lease is looked at between reading and replacing the head: who takes the lease over later also claims later,
    and then this write fails or is outdone.

    Raises:
        LeaseError: another submission has the lease.
        FencedError: a newer group of this submission has claimed its epoch.
    """
    while True:
        head, etag = read_head(storage)
        lease.check()
        if head.submission == lease.token and head.group > group:
            raise FencedError(f"{storage.uri} is written by a newer worker group of this run: this one ends")
        claimed = replace(head, epoch=head.epoch + 1, submission=lease.token, group=group)
        if replace_head(storage, claimed, etag):
            return claimed.epoch


def check_epoch(storage: Storage, head: Head, epoch: int) -> None:
    """Raise `FencedError` unless `epoch` is the one that may write."""
    if head.epoch != epoch:
        raise FencedError(
            f"{storage.uri} is written by a newer worker group (epoch {head.epoch}, this one has {epoch}): "
            "this one writes nothing any more"
        )


def _with_manifest(storage: Storage) -> tuple[str, ...]:
    names = sorted(storage.list(f"{PREFIX}/"))
    return tuple(name.removesuffix(f"/{MANIFEST}") for name in names if name.endswith(f"/{MANIFEST}"))

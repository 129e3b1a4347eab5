"""Who may write a run's checkpoints, and which of them are valid: one object, replaced by conditional writes only.

Every worker group claims an epoch, one above the last, before it reads what to resume from. From then on a group of an
earlier epoch, as one that was paused, can put nothing into the head any more, whatever it has checked before. Its files
lie in folders that carry its epoch, so they never replace another's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from infra.storage.base import MissingKeyError, Storage, StorageError
from infra.storage.failures import FailureClass
from infra.storage.lease import Lease

PREFIX = "checkpoints"
MANIFEST = "manifest.json"
HEAD = f"{PREFIX}/head.json"


class FencedError(ValueError):
    """A newer worker group writes this run's checkpoints now."""

    failure = FailureClass.TRANSIENT  # of this group alone: the run continues in the newer one, or in another


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """The worker group that may write."""

    epoch: int
    """From 1, one above that of the run's last writer."""
    submission: str
    """Token of the lease that the epoch was claimed under."""
    group: int
    """Number of the worker group within its submission."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The last writer's claim, and the valid checkpoints."""

    writer: Writer
    keys: tuple[str, ...] = ()
    """Folders of the valid checkpoints, oldest first."""


def checkpoint_key(cursor: int) -> str:
    """Return the folder of a checkpoint that was written without a head, relative to the run's storage."""
    return f"{PREFIX}/{cursor:015d}"


def unique_key(cursor: int, epoch: int) -> str:
    """Return a folder for a checkpoint that no other writer, nor this one again, will use."""
    return f"{checkpoint_key(cursor)}-{epoch:06d}-{uuid.uuid4().hex[:8]}"


def cursor_of(key: str) -> int | None:
    """Return the cursor in a checkpoint's folder name; None: it is no such name."""
    cursor = key.rpartition("/")[2].partition("-")[0]
    return int(cursor) if cursor.isdecimal() and cursor.isascii() else None


def epoch_of(key: str) -> int:
    """Return the epoch in a checkpoint's folder name; 0 where it was written without a head."""
    parts = key.rpartition("/")[2].split("-")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() and parts[1].isascii() else 0


def read_head(storage: Storage) -> tuple[Head | None, str]:
    """Return the head and its ETag; None where there is none, as in runs of earlier versions.

    Raises:
        StorageError: it can't be read, or is none of this version's.
    """
    try:
        data, etag = storage.read_with_etag(HEAD)
    except MissingKeyError:
        return None, ""
    try:
        values = json.loads(data)
        return Head(writer=Writer(**values["writer"]), keys=tuple(values["keys"])), etag
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{storage.location(HEAD)} can't be read: use the version that wrote it, or delete it to have every "
            f"checkpoint with a {MANIFEST} taken as valid"
        ) from error


def replace_head(storage: Storage, head: Head, etag: str) -> bool:
    """Write the head if it is still the one of this ETag (empty: none); False: another writer was first."""
    return storage.replace(HEAD, json.dumps(asdict(head), indent=1).encode(), etag)


def valid_keys(head: Head | None, names: Iterable[str]) -> list[str]:
    """Return the folders of the valid ones among some checkpoints' files, oldest first, one a cursor.

    Those with a manifest that the head lists. Without a head, and where a folder's name carries no epoch, a manifest is
    enough: such a folder was written by an earlier version, or put there by hand.
    """
    whole = sorted(name.removesuffix(f"/{MANIFEST}") for name in names if name.endswith(f"/{MANIFEST}"))
    listed = set(head.keys) if head is not None else set(whole)
    valid = [key for key in whole if not epoch_of(key) or key in listed]
    return list({cursor: key for key in valid if (cursor := cursor_of(key)) is not None}.values())


def claim(storage: Storage, lease: Lease, group: int) -> Writer:
    """Make a worker group the run's writer; from now on none of an earlier epoch can make a checkpoint valid.

    The lease is looked at between reading and replacing the head: who takes the lease over later also claims later,
    and then this write fails or is outdone.

    Raises:
        LeaseError: another submission has the lease.
        FencedError: a newer group of this submission has claimed its epoch.
    """
    while True:
        head, etag = read_head(storage)
        lease.check()
        if head is not None and head.writer.submission == lease.token and head.writer.group > group:
            raise FencedError(f"{storage.uri} is written by a newer worker group of this run")
        if head is None:  # or it was deleted: what is there may carry epochs
            names = storage.list(f"{PREFIX}/")
            epoch, keys = max(map(_epoch_of_file, names), default=0), tuple(valid_keys(None, names))
        else:
            epoch, keys = head.writer.epoch, head.keys
        writer = Writer(epoch=epoch + 1, submission=lease.token, group=group)
        if replace_head(storage, Head(writer=writer, keys=keys), etag):
            return writer


def held_head(storage: Storage, writer: Writer) -> tuple[Head, str]:
    """Return the head and its ETag.

    Raises:
        FencedError: `writer` may not write any more.
    """
    head, etag = read_head(storage)
    if head is None:
        raise FencedError(f"{storage.location(HEAD)} was deleted; the next worker group makes it again")
    if head.writer != writer:
        raise FencedError(
            f"{storage.uri} is written by a newer worker group (epoch {head.writer.epoch}, this one has "
            f"{writer.epoch}): this one no longer writes"
        )
    return head, etag


def commit(storage: Storage, key: str, writer: Writer) -> None:
    """Make a checkpoint, whose files are all written, valid: put it into the head, in place of one of its cursor.

    Raises:
        FencedError: a newer worker group writes now; nothing was changed.
    """
    while True:
        head, etag = held_head(storage, writer)
        others = [other for other in head.keys if cursor_of(other) != cursor_of(key)]
        if replace_head(storage, replace(head, keys=tuple(sorted([*others, key]))), etag):
            return


def _epoch_of_file(name: str) -> int:
    return epoch_of(name.rpartition("/")[0])

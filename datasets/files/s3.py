"""Shards and manifests in S3 by URL, through the storage client, with its errors as data errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets.errors import DataAccessError, DataAwayError, DataError
from infra.storage.base import ChangedObjectError, MissingKeyError, StorageAwayError, StorageError

if TYPE_CHECKING:
    from infra.storage.s3 import S3Storage

PATIENCE_S = 900.0
"""How long reading samples is retried while the server is down or busy."""
CHECK_PATIENCE_S = 30.0
"""The same for what a user waits for: lists and manifests."""


class RemoteFile(NamedTuple):
    """One object, as a list shows it."""

    url: str
    size: int
    """in bytes"""
    etag: str
    """without quotes"""


class MissingError(DataError):
    """There is no such object."""


def is_remote(url: str) -> bool:
    """Say whether a URL is an object or prefix in S3."""
    return url.startswith("s3://")


def read(
    url: str, *, start: int = 0, length: int | None = None, etag: str = "", patience_s: float = PATIENCE_S
) -> bytes:
    """Return an object's bytes [start, start + length), or all of them.

    Raises:
        DataError: missing, not allowed, not reachable for `patience_s`, or of another ETag than `etag`.
    """
    if length == 0:
        return b""
    with opened(url, patience_s) as (storage, key):
        data, tag = storage.read_range(key, start, length)
    if etag and tag.strip('"') != etag:
        raise changed(url, tag.strip('"'), etag)
    return data


def changed(url: str, found: str, known: str) -> DataError:
    """Return the error for an object that is not the one that was indexed."""
    return DataError(
        f"{url}: its ETag is {found}, but it was indexed with {known}: changed since; run `python -m jobs.index` again"
    )


def list_folder(url: str, *, patience_s: float = CHECK_PATIENCE_S) -> list[RemoteFile]:
    """Return the objects directly under a prefix, in the order of their names."""
    with opened(url.rstrip("/"), patience_s) as (storage, folder):
        found = storage.list_folder(folder)
    return [RemoteFile(storage.location(item.key), item.size, item.etag.strip('"')) for item in found]


def list_below(url: str) -> list[RemoteFile]:
    """Return all objects under a prefix, in folders of it too, in the order of their keys; hidden ones are left out."""
    with opened(url.rstrip("/"), CHECK_PATIENCE_S) as (storage, folder):
        found = storage.list(f"{folder}/" if folder else "")
        return [RemoteFile(storage.location(key), size, "") for key, size in found.items()]


def write(url: str, data: bytes, *, patience_s: float = CHECK_PATIENCE_S) -> None:
    """Write an object."""
    with opened(url, patience_s) as (storage, key):
        storage.write(key, data)


def upload(url: str, path: Path, *, patience_s: float = PATIENCE_S) -> None:
    """Write a local file as an object, in parts when it is large."""
    with opened(url, patience_s) as (storage, key):
        storage.upload(key, path)


def delete(url: str, *, patience_s: float = CHECK_PATIENCE_S) -> None:
    """Delete an object; it may be gone already."""
    with opened(url, patience_s) as (storage, key):
        storage.delete(key)


@contextmanager
def opened(url: str, patience_s: float) -> Iterator[tuple[S3Storage, str]]:
    """Give the storage of a URL's bucket, and the key in it; what storage can't do is an error of the data here."""
    from infra.storage.s3 import S3Storage

    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not is_remote(url):  # of `s3://` the slashes may be cut off
        raise DataError(f"{url}: no bucket in it; write s3://BUCKET/PREFIX")
    with data_errors():
        yield S3Storage(bucket, patience_s=patience_s), key


@contextmanager
def data_errors() -> Iterator[None]:
    """Raise what storage can't do as an error of the data."""
    try:
        yield
    except MissingKeyError as error:
        raise MissingError(str(error)) from None
    except StorageAwayError as error:
        raise DataAwayError(str(error)) from None
    except ChangedObjectError as error:
        raise DataError(str(error)) from None
    except StorageError as error:
        raise DataAccessError(str(error)) from None

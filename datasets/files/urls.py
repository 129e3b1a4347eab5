"""Files by URL, local or in S3: listing folders, reading small files, and a shard as a seekable stream."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile, is_remote
from infra.storage.base import PROBE, Data, MissingKeyError, Storage
from infra.storage.buffers import SeekableReader
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def is_shard(url: str) -> bool:
    """Say whether a name is that of a shard."""
    return url.endswith(TAR_SUFFIXES)


def is_packed(url: str) -> bool:
    """Say whether a shard is compressed, so that nothing can be read from it by offset before it is unpacked."""
    return url.endswith((".gz", ".tgz"))


def name_of(url: str) -> str:
    """Return the last part of a URL."""
    return url.rstrip("/").rpartition("/")[2]


def folder_of(url: str) -> str:
    """Return all but the last part of a URL."""
    return url.rstrip("/").rpartition("/")[0]


def folder_beside(place: str) -> str:
    """Return the folder that a file lies in, which its relative paths are relative to; `place` is a path or a URL."""
    return folder_of(place) if is_remote(place) else str(Path(place).parent)


def join(folder: str, name: str) -> str:
    """Return `name` in `folder`, or `name` itself where it is a URL or an absolute path."""
    return name if "://" in name or name.startswith("/") else f"{folder.rstrip('/')}/{name}"


def list_shards(folder: str) -> list[RemoteFile]:
    """Return the shards directly in a folder in the order of their names; the ETag of a local file is empty."""
    if is_remote(folder):
        return [file for file in s3.list_folder(folder) if is_shard(file.url)]
    paths = sorted(path for path in Path(folder).iterdir() if is_shard(path.name) and not path.name.startswith("."))
    return [RemoteFile(str(path.absolute()), path.stat().st_size, "") for path in paths]


def read_file(url: str) -> bytes:
    """Return a small file's bytes.

    Raises:
        FileNotFoundError: it is missing.
        DataError: S3 can't be read.
    """
    if not is_remote(url):
        return Path(url).read_bytes()
    try:
        return s3.read(url, patience_s=s3.CHECK_PATIENCE_S)
    except s3.MissingError as error:
        raise FileNotFoundError(str(error)) from None


def write_file(url: str, *data: Data) -> None:
    """Write a file of one or more buffers, whole or not at all; none of them is copied whole.

    Raises:
        DataError: it can't be written.
    """
    with _storage_of(url) as (storage, key):
        storage.write(key, *data)


def tag_of(url: str) -> str:
    """Return the tag of a small file's content, which is another one when the file is written again; empty: no file.

    Raises:
        DataError: it can't be read.
    """
    with _storage_of(url) as (storage, key), contextlib.suppress(MissingKeyError):
        return storage.read_with_etag(key)[1]
    return ""


def replace_file(url: str, data: bytes, tag: str) -> bool:
    """Write a file if it is still the one of this tag (empty: if there is none); say whether it was.

    Raises:
        DataError: it can't be written.
    """
    with _storage_of(url) as (storage, key):
        return storage.replace(key, data, tag)


@contextlib.contextmanager
def _storage_of(url: str) -> Iterator[tuple[Storage, str]]:
    """Give the storage that a file is in, and its key there."""
    if is_remote(url):
        with s3.opened(url, s3.CHECK_PATIENCE_S) as found:
            yield found
    else:
        path = Path(url)
        with s3.data_errors():
            yield LocalStorage(path.parent), path.name


def remove_file(url: str) -> None:
    """Remove a file; it may be gone already."""
    if is_remote(url):
        s3.delete(url)
    else:
        Path(url).unlink(missing_ok=True)


def place_to_write(given: str, flag: str) -> str:
    """Return the file or folder that a user wants something written to, as the other functions take it.

    Raises:
        DataError: it is empty, has no bucket, or is neither local nor in S3; names the flag.
    """
    with s3.data_errors():
        storage = open_storage(given, what=flag)
    return str(storage.root) if isinstance(storage, LocalStorage) and "://" in given else given


def check_writable(folder: str) -> None:
    """Write a file into a folder and remove it, before long work for what comes to lie there.

    Raises:
        DataError: it can't be written.
    """
    probe = join(folder, PROBE)
    write_file(probe, b"probe")
    with contextlib.suppress(DataError):  # S3 that may be written and not deleted from
        remove_file(probe)


class _Ranged(SeekableReader):
    """An object in S3 as a raw stream to seek in: each read is one request."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__(file.size)
        self._file = file

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        file = self._file
        buffer[:length] = s3.read(file.url, start=self._position, length=length, etag=file.etag)
        self._position += length
        return length


def open_shard(file: RemoteFile, *, block_bytes: int) -> BinaryIO:
    """Open a shard to read and seek in; one in S3 is fetched in blocks, and a seek fetches nothing."""
    if not is_remote(file.url):
        return Path(file.url).open("rb")
    return io.BufferedReader(_Ranged(file), buffer_size=block_bytes)


def absolute(place: str) -> str:
    """Return a folder or file independent of where the command is run."""
    return place.rstrip("/") if is_remote(place) else str(Path(place).absolute())

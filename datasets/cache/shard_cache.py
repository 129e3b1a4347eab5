"""The node's shard cache: bounded, shared by every process on the node and by later runs, filled by whoever is first.

A folder of whole shards, named by the digest of URL and ETag. A shard that is on its way is `NAME.part`, locked by the
process that downloads it; when it is whole it is renamed. A process that dies leaves an unlocked part, which the next
one takes over. What is evicted is unlinked: a process that still reads it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile
from datasets.files.urls import open_shard
from datasets.shards.manifest import ShardInfo

_CHUNK_BYTES = 8 << 20
_WAIT_S = 0.05
NOW = -1
"""The next use of a shard that can't wait."""
NEVER = 1 << 62
"""The next use of a shard that nobody plans to use."""


class Fetched(Enum):
    """What became of a request for a shard."""

    PRESENT = "it is in the cache"
    ELSEWHERE = "another process is downloading it"
    NO_ROOM = "everything in the cache is used sooner"


def default_folder() -> Path:
    """Return where the cache is unless the configuration says: below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "crescendo" / "shards"


class ShardCache:
    """The shards on this node's disk.

    Args:
        folder: made if missing.
        limit_bytes: size that the shards in it may have together.

    Raises:
        DataError: the folder can't be made.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"data.cache_dir {folder}: {error.strerror}; name another folder, or `none`") from error

    def check_room(self, shards: Sequence[ShardInfo]) -> None:
        """Refuse a limit or a disk that has no room for the largest shard.

        Raises:
            DataError: says what is missing.
        """
        check_limit(shards, self.limit_bytes)
        if shards:
            largest = max(shards, key=lambda shard: shard.stored_bytes)
            free = shutil.disk_usage(self.folder).free + self.used_bytes()
            if largest.stored_bytes > free and self.find(largest) is None:
                raise self._disk_full(largest.stored_bytes)

    def find(self, shard: ShardInfo) -> Path | None:
        """Return the file of a shard that is in the cache."""
        path = self.folder / f"{_key(shard)}.tar"
        return path if path.exists() else None

    def used_bytes(self) -> int:
        """Size of everything in the cache, what is on its way included."""
        return sum(size for _, size, _ in self._files(".tar", ".part"))

    def fetch(self, shard: ShardInfo, *, next_use: int = NOW, uses: Callable[[], Mapping[str, int]] = dict) -> Fetched:
        """Download a shard unless it is there or on its way; evicts those that are used last.

        Args:
            shard: to be fetched.
            next_use: samples from now until it is used.
            uses: gives the same for the keys of other shards; those that it lacks are used never.

        Raises:
            DataError: S3 can't be read, the shard changed, or the disk is full.
        """
        name = _key(shard)
        whole, part = self.folder / f"{name}.tar", self.folder / f"{name}.part"
        if whole.exists():
            return Fetched.PRESENT
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            if not _lock_without_waiting(file) or not _is_still(file, part):
                return Fetched.ELSEWHERE
            try:
                if whole.exists():
                    return Fetched.PRESENT
                if not self._reserve(shard, file, next_use, uses):
                    return Fetched.NO_ROOM
                _download(shard, file)
                part.replace(whole)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise self._disk_full(shard.stored_bytes) from None
                raise DataError(f"data.cache_dir {self.folder}: {error.strerror}") from error
            finally:
                part.unlink(missing_ok=True)  # after the rename there is none
        return Fetched.PRESENT

    def require(self, shard: ShardInfo) -> Path:
        """Return the file of a shard, once it is there."""
        while (path := self.find(shard)) is None:
            if self.fetch(shard) is Fetched.ELSEWHERE:
                time.sleep(_WAIT_S)
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def _reserve(self, shard: ShardInfo, file: BinaryIO, next_use: int, uses: Callable[[], Mapping[str, int]]) -> bool:
        """Take the shard's bytes of the limit and of the disk, one process at a time."""
        with self._locked():
            self._drop_dead_parts()
            if not self._make_room(shard.stored_bytes, next_use, uses):
                return False
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, max(1, shard.stored_bytes))
        return True

    def _make_room(self, size: int, next_use: int, uses: Callable[[], Mapping[str, int]]) -> bool:
        excess = self.used_bytes() + size - self.limit_bytes
        if excess <= 0:
            return True
        known = uses()
        # Farthest next use first; of those that nobody plans to use, the one that was used longest ago.
        rows = [(-known.get(path.stem, NEVER), mtime, path, size) for path, size, mtime in self._files(".tar")]
        victims = []
        for negative_use, _, path, freed in sorted(rows):
            if excess <= 0 or -negative_use <= next_use:
                break
            victims.append(path)
            excess -= freed
        if excess > 0:
            return False
        for path in victims:
            path.unlink(missing_ok=True)
        return True

    def _drop_dead_parts(self) -> None:
        """Remove what killed processes left."""
        for path, _, _ in self._files(".part"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if _lock_without_waiting(file):
                    path.unlink(missing_ok=True)

    def _files(self, *suffixes: str) -> list[tuple[Path, int, float]]:
        """Return (path, size, time of the last use) of the cache's files."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(suffixes):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((Path(entry.path), status.st_size, status.st_mtime))
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "cache.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _disk_full(self, needed: int) -> DataError:
        free = shutil.disk_usage(self.folder).free
        return DataError(
            f"data.cache_dir {self.folder}: the disk is full: {free / 1e6:.1f} MB free, the shard has "
            f"{needed / 1e6:.1f} MB; free some space, lower data.cache_gb, or stream with data.cache_dir=none"
        )


def check_limit(shards: Sequence[ShardInfo], limit_bytes: int) -> None:
    """Refuse a cache that may not hold the largest of some shards.

    Raises:
        DataError: names the shard.
    """
    largest = max(shards, key=lambda shard: shard.stored_bytes, default=None)
    if largest is not None and largest.stored_bytes > limit_bytes:
        raise DataError(
            f"data.cache_gb is {limit_bytes / 1e9:g}, but {largest.url} has {largest.stored_bytes / 1e9:.3g} GB; "
            "raise it" + ("" if largest.packed else ", or stream with data.cache_dir=none")
        )


def shard_key(shard: ShardInfo) -> str:
    """Return a shard's name in the cache: the digest of URL and ETag (of a local file: size and time)."""
    return _key(shard)


def _key(shard: ShardInfo) -> str:
    mark = shard.etag
    if not s3.is_remote(shard.url):
        status = shard.path.stat()
        mark = f"{status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(f"{shard.url}\0{mark}".encode()).hexdigest()[:32]


def _lock_without_waiting(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(file: BinaryIO, path: Path) -> bool:
    """Say whether an open file is what its path names: another process may have finished it in between."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _download(shard: ShardInfo, file: BinaryIO) -> None:
    """Write the shard into the file, unpacked, and down to the disk: what is renamed is whole, whatever happens."""
    source = RemoteFile(shard.url, shard.num_bytes, shard.etag)
    if shard.packed:
        file.truncate(0)
        with open_shard(source, block_bytes=_CHUNK_BYTES) as packed, gzip.open(packed) as stream:
            try:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise DataError(f"{shard.url}: damaged compressed shard ({error}); write it again") from error
    else:
        for start in range(0, shard.num_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, shard.num_bytes - start)
            data = s3.read(shard.url, start=start, length=length, etag=shard.etag)
            os.pwrite(file.fileno(), data, start)
    file.flush()
    os.fdatasync(file.fileno())


def open_cache(config: DataConfig) -> ShardCache | None:
    """Return the node's shard cache, or None where the configuration says `none`.

    Raises:
        DataError: its folder can't be made.
    """
    folder = cache_folder(config)
    return None if folder is None else ShardCache(folder, round(config.cache_gb * 1e9))


def cache_folder(config: DataConfig) -> Path | None:
    """Return where the node's shard cache is, or None where the configuration says `none`."""
    if config.cache_dir == "none":
        return None
    return Path(config.cache_dir).expanduser().absolute() if config.cache_dir else default_folder()

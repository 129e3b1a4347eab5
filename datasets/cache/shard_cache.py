"""The node's shard cache: bounded, shared by every process on the node and by later runs, filled by whoever is first.

A folder of whole shards, named by the digest of URL and ETag. A shard that is on its way is `NAME.UNIQUE.part`, locked
by the process that downloads it; when it is whole it is renamed. A process that dies leaves an unlocked part, which the
next one removes. What is in the folder changes under one lock, `cache.lock`; so a name is removed only while it is sure
whose it is. What is evicted is unlinked: a process that still reads it continues.

Several users share a folder that all of them can write: what is made in it is as readable as the folder is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from datasets.cache.download import PART, download
from datasets.cache.shared_files import file_mode, open_lock
from datasets.config import DataConfig
from datasets.errors import DataAccessError, DataError
from datasets.files import s3
from datasets.shards.manifest import ShardInfo
from infra.storage.file_lock import lock_within

log = logging.getLogger(__name__)

_WAIT_S = 0.05
_LOCK_WAIT_S = 10.0
"""A folder that another process has locked for so long is left alone for now: that process may be stopped."""
_SAY_AFTER_S = 30.0
"""A shard that was waited for so long is named in the log."""
NOW = -1
"""The next use of a shard that can't wait."""
NEVER = 1 << 62
"""The next use of a shard that nobody plans to use."""

Uses = Callable[[], Mapping[str, int]]
"""-> the samples from now until the next use of each shard, by its key"""


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
        self._sizes: dict[str, int] = {}
        with self._explained(0):
            folder.mkdir(parents=True, exist_ok=True)

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
        path = self._path(shard)
        return path if os.access(path, os.R_OK) else None

    def used_bytes(self) -> int:
        """Size of everything in the cache, what is on its way included."""
        known, sizes, parts = self._sizes, {}, 0
        for name in os.listdir(self.folder):  # noqa: PTH208  (once a download, of thousands of names)
            if name.endswith(".tar"):  # whole, and so of the size that it had before
                sizes[name] = known[name] if name in known else self._size(name)
            elif name.endswith(PART):
                parts += self._size(name)
        self._sizes = sizes
        return sum(sizes.values()) + parts

    def _size(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def fetch(self, shard: ShardInfo, *, next_use: int = NOW, uses: Uses = dict) -> Fetched:
        """Download a shard unless it is there or on its way; evicts those that are used last.

        Args:
            shard: to be fetched.
            next_use: samples from now until it is used.
            uses: gives the same for the keys of other shards; those that it lacks are used never.

        Raises:
            DataError: S3 can't be read, the shard changed, the folder can't be written, or the disk is full.
        """
        if self.find(shard) is not None:
            return Fetched.PRESENT
        with self._explained(shard.stored_bytes):
            claim = self._claim(shard, next_use, uses)
            if isinstance(claim, Fetched):
                return claim
            part, file = claim
            try:
                with file:
                    download(shard, file)
                    part.rename(self._path(shard))
            finally:
                part.unlink(missing_ok=True)  # this call's own name; after the rename there is none
        return Fetched.PRESENT

    def open_present(self, shard: ShardInfo) -> int | None:
        """Return a descriptor of a shard's file; None where it is not in the cache."""
        try:
            descriptor = os.open(self._path(shard), os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            return None
        with contextlib.suppress(OSError):  # another user's
            os.utime(descriptor)
        return descriptor

    def open(self, shard: ShardInfo) -> int:
        """Return a descriptor of a shard's file, once it is there; what was evicted meanwhile is fetched again.

        Raises:
            DataError: as `fetch`.
        """
        say_at = time.monotonic() + _SAY_AFTER_S
        while (descriptor := self.open_present(shard)) is None:
            fetched = self.fetch(shard)
            if fetched is not Fetched.PRESENT:
                if time.monotonic() > say_at:
                    say_at = float("inf")
                    log.warning("waiting for %s in data.cache_dir %s: %s", shard.url, self.folder, fetched.value)
                time.sleep(_WAIT_S)
        return descriptor

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard_key(shard)}.tar"

    def _claim(self, shard: ShardInfo, next_use: int, uses: Uses) -> Fetched | tuple[Path, BinaryIO]:
        """Take the shard's bytes of the limit and of the disk, one process at a time; return the part to fill."""
        with self._locked() as locked:
            if not locked:
                return Fetched.ELSEWHERE
            if self.find(shard) is not None:
                return Fetched.PRESENT
            if any(name.startswith(f"{shard_key(shard)}.") for name in self._living_parts()):
                return Fetched.ELSEWHERE
            if not self._make_room(shard.stored_bytes, next_use, uses):
                return Fetched.NO_ROOM
            return self._new_part(shard)

    def _new_part(self, shard: ShardInfo) -> tuple[Path, BinaryIO]:
        part = self.folder / f"{shard_key(shard)}.{uuid.uuid4().hex}{PART}"
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b")
        try:
            os.fchmod(file.fileno(), file_mode(self.folder))
            fcntl.flock(file, fcntl.LOCK_EX)
            os.posix_fallocate(file.fileno(), 0, max(1, shard.stored_bytes))
        except BaseException:
            part.unlink(missing_ok=True)
            file.close()
            raise
        return part, file

    def _make_room(self, size: int, next_use: int, uses: Uses) -> bool:
        excess = self.used_bytes() + size - self.limit_bytes
        if excess <= 0:
            return True
        known = uses()
        # Farthest next use first; of those that nobody plans to use, the one that was used longest ago.
        rows = [
            (-known.get(path.stem, NEVER), status.st_mtime, path, status.st_size)
            for path, status in self._files(".tar")
            if self._is_removable(status)
        ]
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

    def _is_removable(self, status: os.stat_result) -> bool:
        """Say whether this user may remove a file: in a sticky folder, as /tmp is one, only its own."""
        folder = self.folder.stat()
        return not folder.st_mode & stat.S_ISVTX or os.geteuid() in (0, status.st_uid, folder.st_uid)

    def _living_parts(self) -> list[str]:
        """Return the names of what is on its way, and remove what killed processes left.

        Under the folder's lock: a part that is locked by nobody stays so.
        """
        living = []
        for path, _ in self._files(PART):
            try:
                with path.open("rb") as file:
                    if not lock_within(file.fileno(), 0.0):
                        living.append(path.name)
                        continue
                path.unlink()
            except FileNotFoundError:  # whole by now
                continue
            except OSError:  # another user's
                living.append(path.name)
        return living

    def _files(self, *suffixes: str) -> list[tuple[Path, os.stat_result]]:
        """Return the cache's files, with size and time of the last use in their status."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(suffixes):
                with contextlib.suppress(FileNotFoundError):
                    found.append((Path(entry.path), entry.stat()))
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Lock the folder, and give whether that was possible: the process that has it locked may be stopped."""
        descriptor = open_lock(self.folder / "cache.lock", file_mode(self.folder))
        try:
            yield lock_within(descriptor, _LOCK_WAIT_S)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor, too
            os.close(descriptor)

    @contextlib.contextmanager
    def _explained(self, needed: int) -> Iterator[None]:
        """Turn an `OSError` inside the block into a `DataError` of one line; `needed`: bytes of the shard."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full(needed) from None
            cure = "name another folder, or `none`"
            if isinstance(error, PermissionError):
                cure = "give everyone who shares it write permission (chmod -R a+rwX), or name another folder"
            raise DataAccessError(f"data.cache_dir {self.folder}: {error.strerror}; {cure}") from error

    def _disk_full(self, needed: int) -> DataError:
        free = shutil.disk_usage(self.folder).free
        return DataAccessError(
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
    mark = shard.etag
    if not s3.is_remote(shard.url):
        try:
            status = shard.path.stat()
        except FileNotFoundError:
            raise DataError(f"{shard.url}: the shard is gone; write it again") from None
        mark = f"{status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(f"{shard.url}\0{mark}".encode()).hexdigest()[:32]


def open_cache(config: DataConfig, shards: Iterable[ShardInfo]) -> ShardCache | None:
    """Return the node's shard cache, or None where the configuration says `none` or none of the shards needs it.

    Plain shards of this machine are read where they lie: a home that can't be written to does not keep them from it.

    Raises:
        DataError: its folder can't be made.
    """
    folder = cache_folder(config)
    if folder is None or not any(shard.is_cached for shard in shards):
        return None
    return ShardCache(folder, round(config.cache_gb * 1e9))


def cache_folder(config: DataConfig) -> Path | None:
    """Return where the node's shard cache is, or None where the configuration says `none`."""
    if config.cache_dir == "none":
        return None
    return Path(config.cache_dir).expanduser().absolute() if config.cache_dir else default_folder()

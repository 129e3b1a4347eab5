"""Storage in a local folder, or one that a shared filesystem mounts."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from infra.storage.base import Data, MissingKeyError, Storage, StorageAwayError, StorageError, checked_key, probe_key
from infra.storage.failures import is_transient
from infra.storage.file_lock import NO_LOCKS, locked, make_folder

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space, or choose other storage",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose other storage",
    errno.EROFS: "the filesystem is read-only; choose writable storage",
    errno.EACCES: "no permission; change the folder's owner or mode, or choose other storage",
    errno.EPERM: "no permission; change the folder's owner or mode, or choose other storage",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose other storage",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOSYS: f"it has no file locks; {NO_LOCKS}",
    errno.ENOLCK: f"it has no file locks; {NO_LOCKS}",
}


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Name of a file that is being written."""


class _LockLostError(Exception):
    """Another process took the lock."""


@contextmanager
def explained(action: str, location: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` of one line."""
    try:
        yield
    except FileNotFoundError:
        raise MissingKeyError(f"cannot {action} {location}: it does not exist") from None
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
        kind = StorageAwayError if is_transient(error) else StorageError
        raise kind(f"cannot {action} {location}: {cause}") from None


class LocalStorage(Storage):
    """A folder. A write goes to a temporary name next to its target, is flushed to the disk, then renamed."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        super().__init__(str(self.root))

    def __reduce__(self) -> tuple[object, ...]:
        return LocalStorage, (self.root,)

    def sub(self, prefix: str) -> LocalStorage:
        """Return the storage of a folder inside this one."""
        return LocalStorage(self.root / checked_key(prefix))

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return a file's bytes and their SHA-256."""
        with explained("read", self.where(key)):
            data = self._path(key).read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, *data: Data) -> None:
        """Write a file, in place of one that is there."""
        self.fill(key, lambda temporary: _write_synced(temporary, *data))

    def upload(self, key: str, path: str | Path) -> None:
        """Copy a file in."""
        source = Path(path)
        if not source.is_file():
            raise StorageError(f"cannot upload {source}: there is no such file")
        with explained("read", str(source)):
            reader = source.open("rb")
        with reader:
            self.fill(key, lambda temporary: _copy_synced(reader, temporary))

    def download(self, key: str, path: str | Path) -> None:
        """Copy a file out."""
        target = Path(path).absolute()
        with explained("download", self.where(key)):
            reader = self._path(key).open("rb")  # once it is open, it may be deleted
        with reader:
            LocalStorage(target.parent).fill(target.name, lambda temporary: _copy_synced(reader, temporary))

    def write_if_absent(self, key: str, data: Data) -> bool:
        """Write a file unless there is one; decided by the filesystem, by a hard link."""
        try:
            self.fill(key, lambda temporary: _write_synced(temporary, data), place=_link)
        except FileExistsError:
            return False
        return True

    def write_if_match(self, key: str, data: Data, etag: str) -> str | None:
        """Replace a file of this SHA-256, under a lock next to it that a process which was stopped loses."""
        while True:
            try:
                with explained("write", self.where(key)):
                    return self._replace(key, data, etag)
            except _LockLostError:
                continue

    def _replace(self, key: str, data: Data, etag: str) -> str | None:
        """Replace a file of this SHA-256; raise `_LockLostError` if another process had to take the lock.

        Only the rename of the temporary file changes anything. A later holder of the lock first removes such files of
        earlier ones, so none of them, stopped at whatever point, can rename any more once it has lost the lock.
        """
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.replacement")
        with locked(path) as is_held:
            for other in path.parent.iterdir():
                if other.name.startswith(f".{path.name}.") and other.suffix == temporary.suffix:
                    other.unlink(missing_ok=True)
            try:
                _write_synced(temporary, data)
                if not is_held():  # asked after the file is there: who takes the lock later than this removes it
                    raise _LockLostError
                if self._tag(key) != etag:
                    return None
                try:
                    temporary.replace(path)
                except FileNotFoundError:
                    raise _LockLostError from None
                _sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
        return hashlib.sha256(data).hexdigest()

    def _tag(self, key: str) -> str:
        try:
            return self.read_with_etag(key)[1]
        except MissingKeyError:
            return ""

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the keys that begin with `prefix`, in order, with their sizes in bytes."""
        folder = self.root / prefix.rpartition("/")[0]
        found = {}
        with explained("list", self.where(prefix)):
            for parent, _, names in os.walk(folder, onerror=_raise_unless_missing):
                for path in (Path(parent, name) for name in names if not name.startswith(".")):
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix):
                        with suppress(FileNotFoundError):  # deleted since the folder was read
                            found[key] = path.stat().st_size
        return dict(sorted(found.items()))

    def exists(self, key: str) -> bool:
        """Say whether there is a file of this key."""
        return self._path(key).is_file()

    def delete(self, *keys: str) -> None:
        """Remove files, and the folders that this leaves empty."""
        for key in keys:
            path = self._path(key)
            with explained("delete", self.where(key)):
                path.unlink(missing_ok=True)
            self._prune(path.parent)

    def drop_unfinished(self, older_than_s: float) -> int:
        """Remove temporary files that were not written to for so long."""
        until_s, count = time.time() - older_than_s, 0
        with explained("clean up", self.uri):
            for path in self.root.rglob(".*"):
                with suppress(FileNotFoundError):
                    if _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < until_s:
                        path.unlink()
                        count += 1
        return count

    def check_writable(self) -> None:
        """Write and remove a small file, or raise `StorageError`."""
        probe = probe_key()
        self.write(probe, b"probe")
        with explained("delete", self.where(probe)):
            self._path(probe).unlink()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def fill(self, key: str, fill: Callable[[Path], None], place: Callable[[Path, Path], None] = os.replace) -> None:
        """Fill a temporary file and put it in place; with `_link` as `place`, raise `FileExistsError` if taken."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        taken = False
        with explained("write", self.where(key)):
            try:
                _fill_in_folder(temporary, fill)
                try:
                    place(temporary, path)
                    _sync_folder(path.parent)
                except FileExistsError:
                    taken = True
            finally:
                temporary.unlink(missing_ok=True)
        if taken:
            raise FileExistsError(str(path))

    def _prune(self, folder: Path) -> None:
        """Remove folders that a delete left empty, as they would not exist in S3 either."""
        while folder != self.root and self.root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _fill_in_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder of `path` and fill the file; a delete may remove the empty folder in between, so try again."""
    for attempt in range(5):
        try:
            make_folder(path.parent)
            return fill(path)
        except FileNotFoundError:
            if attempt == 4:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
    return None


def _link(source: Path, target: Path) -> None:
    """Give `source` the name `target` as well, or raise `FileExistsError`; some mounts have no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with target.open("xb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write_synced(path: Path, *data: Data) -> None:
    with path.open("wb") as file:
        file.writelines(data)
        file.flush()
        os.fsync(file.fileno())


def _copy_synced(reader: BinaryIO, target: Path) -> None:
    reader.seek(0)
    with target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

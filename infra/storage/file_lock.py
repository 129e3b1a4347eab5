"""A lock file that a process which was stopped, or whose machine is paused, loses to the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = "mount this filesystem with file locks (flock), or choose another"
"""The cure where a filesystem has no locks."""
LOCK_TERM_S = 10.0
"""A process that holds a lock for this long loses it to the next one."""
LOCK_LOOK_S = 0.01
"""Pause between two looks at a lock."""


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock file next to `path`, and leave none behind; yields what says whether it is still held.

    The kernel releases it when its holder dies. From one that holds it for `LOCK_TERM_S`, as it was stopped or its
    machine is paused, it is taken by removing the file.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        make_folder(path.parent)
        with lock.open("w") as file:

            def is_held(descriptor: int = file.fileno()) -> bool:
                return is_same_file(lock, descriptor)

            if not lock_within(file.fileno(), LOCK_TERM_S):
                lock.unlink(missing_ok=True)
            elif is_held():  # else its last holder removed it while we waited
                try:
                    yield is_held
                finally:
                    if is_held():
                        lock.unlink(missing_ok=True)
                return


def lock_within(descriptor: int, seconds: float) -> bool:
    """Lock an open file for this process alone, and say whether that was possible within some time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_LOOK_S)
        else:
            return True


def is_same_file(path: Path, descriptor: int) -> bool:
    """Say whether an open file is what its path names: another process may have removed or replaced it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def make_folder(folder: Path) -> None:
    """Make `folder`, and say `NotADirectoryError` where a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None

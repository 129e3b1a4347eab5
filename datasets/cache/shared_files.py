"""Files that several processes, and several users, share in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

_POLL_S = 0.05


def file_mode(folder: Path) -> int:
    """Return the mode of files that are made in a folder: as readable as it is, whatever the umask."""
    return folder.stat().st_mode & 0o444 | 0o600


def open_lock(path: Path, mode: int) -> int:
    """Return a descriptor of a lock file, which is made if missing; to lock another user's, reading it is enough."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):  # another user was faster
        os.fchmod(descriptor, mode)
    return descriptor


def lock_within(descriptor: int, seconds: float) -> bool:
    """Lock a file for this process alone, and say whether that was possible within some time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def is_same_file(path: Path, descriptor: int) -> bool:
    """Say whether an open file is what its path names: another process may have removed or replaced it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

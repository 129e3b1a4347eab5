"""Files that several processes, and several users, share in a folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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

"""A file system of its own that can be filled: what a process sees when the disk of a node is full."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

FILLER = "filler"
_BLOCK = bytes(64 * 1024)


class SmallDisk:
    """A folder on a disk of a few MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Write a file until nothing more fits."""
        try:
            with (self.folder / FILLER).open("ab", buffering=0) as file:
                while True:
                    file.write(_BLOCK)  # the last one that fits is written in part
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def free(self) -> None:
        """Remove that file."""
        (self.folder / FILLER).unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk | None]:
    """Mount a tmpfs of that size; None where that is not allowed, which takes root."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        yield None
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazy: a process that ends may be in it

"""One writer a folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from datasets.errors import DataError


@contextlib.contextmanager
def locked(folder: Path, cure: str) -> Iterator[None]:
    """Hold a local folder's lock, which ends with the process.

    Raises:
        DataError: another process has it; ends with `cure`.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is writing shards there; {cure}") from None
        yield

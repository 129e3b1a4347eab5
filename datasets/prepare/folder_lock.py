"""One writer a folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from datasets.errors import DataError
from infra.storage.file_lock import NO_LOCKS


@contextlib.contextmanager
def locked(folder: Path, cure: str) -> Iterator[None]:
    """Hold a local folder's lock, which ends with the process.

    Raises:
        DataError: another process has it (ends with `cure`), or it can't be locked at all.
    """
    with _opened(folder / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is writing shards there; {cure}") from None
        except OSError as error:
            raise DataError(f"{folder}: no file can be locked there ({error.strerror}); {NO_LOCKS}") from None
        yield


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w")
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}); change its owner or mode") from None

"""Torchvision's downloads: beside the folder they are for, and moved there when they are whole."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets.errors import DataError
from infra.storage.file_lock import is_same_file

log = logging.getLogger(__name__)

_SILENCE_S = 60.0
"""How long a server may say nothing."""


def fetch_whole(name: str, root: Path, download: Callable[[Path], None], *, is_there: Callable[[], bool]) -> None:
    """Download into a folder of its own, and move what is there into `root` when all of it is: never half a set.

    While another process downloads the set, this one waits, and takes what that got.

    Args:
        name: of the set.
        root: folder of torchvision's sets.
        download: puts a set into the folder that it is given.
        is_there: says whether the set is in `root`.

    Raises:
        DataError: it can't be downloaded; names the URL.
    """
    partial = root / f".{name}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{name}.lock") as waited:
            if not (waited and is_there()):
                _fetch(partial, root, download)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise _failed(name, root, partial, error) from None


def _fetch(partial: Path, root: Path, download: Callable[[Path], None]) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        with _impatient(), contextlib.redirect_stdout(io.StringIO()):
            download(partial)
        _merge(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Hold a lock file, which is gone after; yields whether another process had it. One that was killed has none."""
    waited = False
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: another process downloads the same set; waiting for it", lock.parent)
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if is_same_file(lock, file.fileno()):
                try:
                    yield waited
                finally:
                    lock.unlink(missing_ok=True)
                return
            waited = True  # its holder is done, and removed it


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _failed(name: str, root: Path, partial: Path, error: Exception) -> DataError:
    reason, url = " ".join(str(error).replace(str(partial), str(root)).split()), _url_of(error)
    if not url:  # it wasn't about a download: a package that is missing, a variant that there isn't
        return DataError(f"torchvision {name}: {reason}")
    return DataError(
        f"torchvision {name}: {url}: {reason or type(error).__name__}; try again, or copy the set into {root}, as "
        "torchvision lays it out, from a machine that can download it"
    )


def _url_of(error: Exception) -> str:
    """Return the URL that was asked for where the error arose; torchvision's errors don't tell it."""
    urls = [frame.f_locals.get("url") for frame, _ in traceback.walk_tb(error.__traceback__)
            if "torchvision" in frame.f_code.co_filename]  # fmt: skip
    return next((url for url in reversed(urls) if isinstance(url, str)), "")


def _merge(folder: Path, target: Path) -> None:
    """Move what is in a folder into another one, in place of what has its name there."""
    for path in folder.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _merge(path, there)
        else:
            path.replace(there)
    folder.rmdir()

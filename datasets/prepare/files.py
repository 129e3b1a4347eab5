"""Files that a table names, local or in S3: what tells that one has changed, and its bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import is_remote
from datasets.files.urls import folder_of
from datasets.prepare.split import mark_of

MISSING = "missing"
"""The mark of a file that isn't there."""
_REQUESTS_AT_ONCE = 16


def marks_of(places: Iterable[str]) -> dict[str, str]:
    """Return what tells that a file has changed, or `MISSING`, of each place; those in S3 are listed, folder by folder.

    Raises:
        DataError: S3 can't be read.
    """
    marks: dict[str, str] = {}
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for place in places:
        if is_remote(place):
            folders[folder_of(place)].add(place)
        else:
            marks[place] = _local_mark(place)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for wanted, listed in zip(folders.values(), pool.map(s3.list_folder, folders), strict=True):
            found = {file.url: file.etag for file in listed}
            marks |= {place: found.get(place, MISSING) for place in wanted}
    return marks


def read_bytes(place: str) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: it isn't there, or can't be read.
    """
    try:
        return s3.read(place) if is_remote(place) else Path(place).read_bytes()
    except (s3.MissingError, FileNotFoundError):
        raise DataError("no such file") from None
    except OSError as error:
        raise DataError(f"it can't be read ({error.strerror})") from None


def _local_mark(place: str) -> str:
    try:
        return mark_of(Path(place))
    except OSError:
        return MISSING

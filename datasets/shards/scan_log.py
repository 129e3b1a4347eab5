"""What an indexing has read of its shards so far, beside its index: one that is interrupted continues from there."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.urls import join, read_file, remove_file, write_file
from datasets.shards.fingerprint import stamp_of
from datasets.shards.tar_index import MASK_DTYPE, ShardIndex

log = logging.getLogger(__name__)

WRITE_EVERY_S = 30.0
"""Seconds of work that an interruption costs at most."""
_VERSION = 1


class ScanLog:
    """Files `scanned-NUMBER.npz` in the index's folder, each with the scans of some shards, until the index is there.

    Of two commands that index into one folder at a time, one may lose the other's files: that costs work, nothing else,
    as a scan counts only for a shard of its size and ETag (of a local file: time and inode).

    Args:
        folder: of the index.
        files: the shards, as they are before they are read.
        json_field: as in `scan_shard`; scans of another one don't count.
    """

    def __init__(self, folder: str, files: Sequence[RemoteFile], json_field: str) -> None:
        self._folder, self._number = folder, 0
        self._marks = {file.url: _mark(file, json_field) for file in files}
        self._waiting: list[tuple[str, ShardIndex]] = []
        self._written_s = time.monotonic()

    def read(self) -> dict[str, ShardIndex]:
        """Return the scans that are there, by the shards' URLs."""
        scans = dict[str, ShardIndex]()
        while (data := self._part(self._number)) is not None:
            self._number += 1
            try:
                scans |= {url: scan for url, mark, scan in _unpacked(data) if self._marks.get(url) == mark}
            except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
                log.warning("%s can't be read, its shards are read again: %s", self._name(self._number - 1), error)
        return scans

    def add(self, url: str, scan: ShardIndex) -> None:
        """Add a shard; writes now and then."""
        self._waiting.append((url, scan))
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            marked = [(url, self._marks[url], scan) for url, scan in self._waiting]
            write_file(self._name(self._number), _packed(marked))
            self._number, self._waiting, self._written_s = self._number + 1, [], time.monotonic()

    def clear(self) -> None:
        """Remove the files, the last one first: what is left of them is read as before."""
        with contextlib.suppress(DataError):  # S3 that may be written and not deleted from
            for number in reversed(range(self._number)):
                remove_file(self._name(number))

    def _name(self, number: int) -> str:
        return join(self._folder, f"scanned-{number:05d}.npz")

    def _part(self, number: int) -> bytes | None:
        try:
            return read_file(self._name(number))
        except FileNotFoundError:
            return None


def _mark(file: RemoteFile, json_field: str) -> list[Any]:
    """Return what tells this state of a shard, read in this way, from another one."""
    stamp = [file.etag] if is_remote(file.url) else list(stamp_of(Path(file.url)))
    return [_VERSION, json_field, file.size, *stamp]


def _packed(marked: Sequence[tuple[str, list[Any], ShardIndex]]) -> bytes:
    scans = [scan for _, _, scan in marked]
    heads = [_head(url, mark, scan) for url, mark, scan in marked]
    stream = io.BytesIO()
    np.savez(
        stream,
        heads=np.frombuffer(json.dumps(heads).encode(), dtype=np.uint8),
        rows=np.concatenate([scan.rows for scan in scans]),
        keys=np.concatenate([scan.keys for scan in scans]),
        named=np.concatenate([np.empty(0, np.int32), *(scan.named for scan in scans if scan.named is not None)]),
        targets=np.concatenate([np.empty(0), *(scan.targets.ravel() for scan in scans if scan.targets is not None)]),
    )
    return stream.getvalue()


def _head(url: str, mark: list[Any], scan: ShardIndex) -> dict[str, Any]:
    return {
        "url": url,
        "mark": mark,
        "samples": len(scan.rows),
        "names": scan.names,
        "skipped": scan.skipped,
        "examples": scan.examples,
        "warning": scan.warning,
        "several": None if scan.several is None else list(scan.several.items()),
        "targets": None if scan.targets is None else scan.targets.shape,
    }


def _unpacked(data: bytes) -> Iterator[tuple[str, list[Any], ShardIndex]]:
    """Yield what `_packed` was given. Nothing is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as parts:
        rows, keys, named, targets = (parts[name] for name in ("rows", "keys", "named", "targets"))
        heads = json.loads(parts["heads"].tobytes())
    if rows.dtype != MASK_DTYPE:
        raise ValueError("rows of another format")
    row = name = target = 0
    for head in heads:
        samples, shape = head["samples"], head["targets"]
        has_names, size = bool(head["names"]), 0 if shape is None else shape[0] * shape[1]
        yield (
            head["url"],
            head["mark"],
            ShardIndex(
                rows=rows[row : row + samples],
                names=tuple(head["names"]),
                keys=keys[row : row + samples],
                skipped=Counter(head["skipped"]),
                examples=head["examples"],
                warning=head["warning"],
                several=None if head["several"] is None else Counter(dict(head["several"])),
                targets=None if shape is None else targets[target : target + size].reshape(shape),
                named=named[name : name + samples] if has_names else None,
            ),
        )
        row, name, target = row + samples, name + samples * has_names, target + size

"""Where the samples of a tar are: the index that lets one `pread`, or one request of a range, fetch an image."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.files.urls import is_packed, open_shard
from datasets.transforms.formats import IMAGE_EXTENSIONS

INDEX_NAME = "index.npy"
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("size", "<i4"), ("label", "<i4")])
"""One row a sample: first byte of the image in the tar, bytes of the image, label (-1 where there is none)."""
MASK_DTYPE = np.dtype([*INDEX_DTYPE.descr, ("mask_offset", "<i8"), ("mask_size", "<i4")])
"""The same with the place of the sample's mask; mask_size is 0 where there is none."""

MASK_EXTENSION = "mask.png"
LABEL_EXTENSIONS = ("cls", "json", "txt")

# WebDataset's own rule: a key ends at the first dot of the file name; dots in folders belong to the key.
_MEMBER = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$")
_NAME_BYTES = 100
HEADER_BYTES = 512
# A label lies between two images: one block holds the end of one sample and the header of the next.
_BLOCK_BYTES = 16 << 10
_PACKED_BLOCK_BYTES = 4 << 20
_LARGEST_LABEL_BYTES = 1 << 20


class ShardIndex(NamedTuple):
    """What one pass over a shard's headers finds."""

    rows: np.ndarray
    """One row a sample, of `MASK_DTYPE`."""
    names: list[str]
    """Class name of each sample where the labels are text (`.txt`, `.json`); "" where they are numbers or missing."""


def index_shard(path: str | Path) -> np.ndarray:
    """Index a local shard whose labels are numbers: rows of `MASK_DTYPE`.

    Raises:
        DataError: not a tar, a sample without an image, or a label that is no number; names shard and key.
    """
    return scan_shard(RemoteFile(str(path), 0, "")).rows


def scan_shard(file: RemoteFile, *, json_field: str = "label") -> ShardIndex:
    """Walk the headers of one tar, group its members into samples and read the labels.

    Members are told apart by their names only and read by their place in the tar: nothing is unpacked, so a name with
    `..`, an absolute name, a link or a device leads nowhere.

    Args:
        file: the shard, local or in S3.
        json_field: of a `.json` member, where the label is: a number or a class name.

    Raises:
        DataError: not a tar, a sample without an image, or a label that can't be used; names shard and key.
    """
    rows, names = [], []
    for key, members in _samples(file):
        image = next((members[extension] for extension in members if extension in IMAGE_EXTENSIONS), None)
        if image is None:
            raise DataError(f"{file.url}: sample {key!r} has no image, only {', '.join(sorted(members))}")
        label = _label(members, json_field, f"{file.url}: the label of sample {key!r} is")
        mask = members.get(MASK_EXTENSION, (0, 0, b""))
        rows.append((image[0], image[1], label if isinstance(label, int) else -1, mask[0], mask[1]))
        names.append(label if isinstance(label, str) else "")
    return ShardIndex(np.array(rows, dtype=MASK_DTYPE), names)


def key_of(header: bytes) -> str:
    """Return the key in a member's header, the 512 bytes before its data, for messages."""
    name = header[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")
    match = _MEMBER.match(name)
    return match[1] if match else name


_Members = dict[str, tuple[int, int, bytes]]
"""extension -> (offset, size, content where it is a label)"""


def _samples(file: RemoteFile) -> Iterator[tuple[str, _Members]]:
    """Yield (key, members) in the tar's order; the members of a sample lie next to each other."""
    current, members = "", _Members()
    for key, extension, info, content in _members(file):
        if key != current and members:
            yield current, members
            members = {}
        current = key
        members[extension] = (info.offset_data, info.size, content)
    if members:
        yield current, members


def _members(file: RemoteFile) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes]]:
    """Yield (key, extension, member, content where it is a label) of the regular files of a tar."""
    packed = is_packed(file.url)
    try:
        with (
            open_shard(file, block_bytes=_PACKED_BLOCK_BYTES if packed else _BLOCK_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r:gz" if packed else "r:") as tar,
        ):
            for info in tar:
                match = _MEMBER.match(info.name)
                if not info.isreg() or match is None:
                    continue
                extension = match[2].lower()
                is_label = extension in LABEL_EXTENSIONS and info.size <= _LARGEST_LABEL_BYTES
                content = tar.extractfile(info) if is_label else None
                yield match[1], extension, info, content.read() if content else b""
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{file.url}: not a readable tar ({error}); write it again") from error


def _label(members: _Members, json_field: str, message: str) -> int | str:
    """Return the label: a class number, a class name, or -1; `.cls` goes before `.json` before `.txt`."""
    if "cls" in members:
        text = members["cls"][2]
        try:
            label = int(text)
        except ValueError:
            raise DataError(f"{message} {text[:40]!r}, not a class number") from None
        if label < 0:
            raise DataError(f"{message} {label}; class numbers start at 0")
        return label
    if "json" in members:
        value = _json_label(members["json"][2], json_field, message)
        if value is not None:
            return value
    if "txt" in members:
        return members["txt"][2].decode("utf-8", errors="replace").strip() or -1
    return -1


def _json_label(data: bytes, field: str, message: str) -> int | str | None:
    try:
        content: Any = json.loads(data)
    except ValueError:
        raise DataError(f"{message} not readable JSON") from None
    value = content.get(field) if isinstance(content, dict) else content
    if isinstance(value, str | None):
        return value or None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{message} {json.dumps(value)[:40]}; it must be a class name or a number from 0 on")
    return value

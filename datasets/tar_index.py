"""Where the samples of a tar are: the index that lets one `pread` fetch an image."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.errors import DataError

INDEX_NAME = "index.npy"
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("size", "<i4"), ("label", "<i4")])
"""One row a sample: first byte of the image in the tar, bytes of the image, label (-1 where there is none)."""

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
LABEL_EXTENSION = "cls"

# WebDataset's own rule: a key ends at the first dot of the file name; dots in folders belong to the key.
_MEMBER = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$")
_HEADER_BYTES = 512
_NAME_BYTES = 100


def index_shard(path: str | Path) -> np.ndarray:
    """Walk the headers of one tar, group its members into samples and read the labels: rows of `INDEX_DTYPE`.

    Raises:
        DataError: not a tar, a sample without an image, or a label that is no number; names shard and key.
    """
    rows = []
    for key, members in _samples(path):
        image = next((members[extension] for extension in members if extension in IMAGE_EXTENSIONS), None)
        if image is None:
            raise DataError(f"{path}: sample {key!r} has no image, only {', '.join(sorted(members))}")
        rows.append((image[0], image[1], _label(path, key, members)))
    return np.array(rows, dtype=INDEX_DTYPE)


def member_key(descriptor: int, offset: int) -> str:
    """Return the key of the sample whose image starts at `offset` of an open tar, for messages."""
    header = os.pread(descriptor, _HEADER_BYTES, max(0, offset - _HEADER_BYTES))
    name = header[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")
    match = _MEMBER.match(name)
    return match[1] if match else name


_Members = dict[str, tuple[int, int, bytes]]
"""extension -> (offset, size, content where it is a label)"""


def _samples(path: str | Path) -> Iterator[tuple[str, _Members]]:
    """Yield (key, members) in the tar's order; the members of a sample lie next to each other."""
    current, members = "", _Members()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                match = _MEMBER.match(info.name)
                if not info.isreg() or match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                stream = tar.extractfile(info) if extension == LABEL_EXTENSION else None
                members[extension] = (info.offset_data, info.size, stream.read() if stream else b"")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a readable tar ({error}); write it again") from error
    if members:
        yield current, members


def _label(path: str | Path, key: str, members: _Members) -> int:
    if LABEL_EXTENSION not in members:
        return -1
    text = members[LABEL_EXTENSION][2]
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{path}: the label of sample {key!r} is {text[:40]!r}, not a class number") from None
    if label < 0:
        raise DataError(f"{path}: the label of sample {key!r} is {label}; class numbers start at 0")
    return label

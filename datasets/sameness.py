"""Whether a local shard is still the one that was indexed; an object in S3 has an ETag for that, a file has none.

The time of the last change is looked at first: while it is as recorded, nothing is read. A file with another time may
be a mere copy, so it is not refused for that: then pieces all over it are compared. A shard that was written again
differs in them even at equal size, since a tar's members are compressed images. It costs 64 small reads; a checksum of
everything would read the whole dataset at each start.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_PIECES = 64
_PIECE_BYTES = 512


def time_of(path: Path) -> int:
    """Return when a file was changed last, in nanoseconds since 1970."""
    return path.stat().st_mtime_ns


def pieces_digest(path: Path) -> str:
    """Return the digest of pieces all over a file, its beginning and its end among them."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        last = max(0, os.fstat(descriptor).st_size - _PIECE_BYTES)
        for number in range(_PIECES):
            digest.update(os.pread(descriptor, _PIECE_BYTES, last * number // (_PIECES - 1)))
    finally:
        os.close(descriptor)
    return digest.hexdigest()[:16]

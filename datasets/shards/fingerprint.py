"""Whether a local shard is still the one that was indexed. In S3 the ETag tells; a file has none.

The time of the last change is looked at first: while it is as recorded, nothing is read. The same file, by its inode,
with another time was changed in place. Another file with another time may be a mere copy: then pieces all over it are
compared. A shard that was written again differs in them even at equal size, since a tar's members are compressed
images. It costs 64 small reads; a checksum of everything would read the whole dataset at each start. A copy that was
edited in place before it was looked at, in a few bytes, is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_PIECES = 64
_PIECE_BYTES = 512


def stamp_of(path: Path) -> tuple[int, int]:
    """Return when a file was changed last, in nanoseconds since 1970, and its inode."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def is_changed(path: Path, *, mtime_ns: int, inode: int, pieces: str) -> bool:
    """Say whether a file is another one than that of this stamp and digest."""
    time, number = stamp_of(path)
    return time != mtime_ns and (number == inode or pieces_digest(path) != pieces)


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

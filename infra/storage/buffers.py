"""Several buffers as one readable file."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from infra.storage.base import Data


class SeekableReader(io.RawIOBase):
    """A readable stream of `size` bytes whose position can be set."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position


class Joined(SeekableReader):
    """Some buffers, one after the other, as a file to read from."""

    def __init__(self, buffers: Sequence[Data]) -> None:
        self._buffers = [memoryview(buffer) for buffer in buffers]
        self._ends = list(accumulate(len(buffer) for buffer in self._buffers))
        super().__init__(self._ends[-1])

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, copied once."""
        stop = self._ends[-1] if size < 0 else min(self._position + size, self._ends[-1])
        pieces = []
        for index in range(bisect_right(self._ends, self._position), len(self._ends)):
            begin = self._ends[index] - len(self._buffers[index])
            if begin >= stop:
                break
            pieces.append(self._buffers[index][max(0, self._position - begin) : stop - begin])
        self._position = max(stop, self._position)
        return b"".join(pieces)

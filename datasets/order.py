"""Sample order: (seed, lane, offset) -> global sample ids. Pure NumPy, no I/O, no state.

An epoch permutes the blocks of all shards, cuts the permuted stream into L equal lanes and shuffles every lane in
windows. Lanes run on into the next epoch. Every draw is counter-based (Philox), keyed by what it is for, so any
position of the run is reached directly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from datasets.randomness import Purpose

_ORDER_VERSION = 1


class SampleOrder:
    """The order in which a run uses its samples: L lanes of global sample ids, over all epochs.

    Args:
        shard_counts: samples per shard; a global sample id counts through the shards in this order.
        seed: of the run; another seed is another order.
        num_lanes: L, the number of fixed streams that the epoch is cut into.
        block_size: samples that stay together when the epoch is permuted, at most. Smaller where the dataset is so
            small that a lane would get less than one window of blocks.
        window_blocks: blocks that are shuffled together inside a lane.

    Raises:
        ValueError: fewer samples than lanes, or an argument below 1.
    """

    def __init__(
        self,
        shard_counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        num_lanes: int,
        block_size: int,
        window_blocks: int,
    ) -> None:
        counts = np.asarray(shard_counts, dtype=np.int64)
        for name, value in (("num_lanes", num_lanes), ("block_size", block_size), ("window_blocks", window_blocks)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        total = int(counts.sum())
        if total < num_lanes:
            raise ValueError(f"num_lanes is {num_lanes}, but there are only {total} samples; use fewer lanes")
        self.seed, self.num_lanes, self.window_blocks = seed, num_lanes, window_blocks
        self.block_size = max(1, min(block_size, total // (num_lanes * window_blocks)))
        self.lane_length = total // num_lanes
        """Samples of one lane in one epoch."""
        self._total = total
        # A shard of n samples has ceil(n / block) blocks of nearly equal size; block j starts at j * n // blocks.
        self._counts = counts
        self._shard_starts = np.cumsum(counts) - counts
        self._shard_blocks = -(-counts // self.block_size)
        self._block_ends = np.cumsum(self._shard_blocks)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._windows: dict[int, tuple[tuple[int, int], int, np.ndarray]] = {}

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch uses: L * (N // L)."""
        return self.num_lanes * self.lane_length

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that fixes the order; equal digests mean equal orders."""
        head = np.array([_ORDER_VERSION, self.num_lanes, self.block_size, self.window_blocks], dtype="<i8")
        digest = hashlib.sha256(str(self.seed).encode() + head.tobytes() + self._counts.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def lane_samples(self, lane: int, start: int, stop: int) -> np.ndarray:
        """Return the global sample ids of a lane's offsets [start, stop) of the whole run, int64 [stop - start]."""
        assert 0 <= lane < self.num_lanes
        assert 0 <= start <= stop
        parts: list[np.ndarray] = []
        while start < stop:
            epoch, offset = divmod(start, self.lane_length)
            first, samples = self._window(epoch, lane, offset)
            taken = samples[offset - first : offset - first + stop - start]
            parts.append(taken)
            start += len(taken)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _window(self, epoch: int, lane: int, offset: int) -> tuple[int, np.ndarray]:
        """Return (lane offset of its first sample in the epoch, shuffled ids) of the window that holds `offset`."""
        cached = self._windows.get(lane)
        if cached is not None and cached[0][0] == epoch and cached[1] <= offset < cached[1] + len(cached[2]):
            return cached[1], cached[2]
        blocks, ends = self._epoch_blocks(epoch)
        lane_start = lane * self.lane_length
        lane_stop = lane_start + self.lane_length
        first_block = int(np.searchsorted(ends, lane_start, side="right"))
        block = int(np.searchsorted(ends, lane_start + offset, side="right"))
        window = (block - first_block) // self.window_blocks
        low = first_block + window * self.window_blocks
        high = min(low + self.window_blocks, len(blocks))
        begin = int(ends[low - 1]) if low else 0
        samples = self._block_samples(blocks[low:high])[max(lane_start - begin, 0) : lane_stop - begin]
        samples = samples[_permutation(len(samples), self.seed, Purpose.WINDOW, epoch, lane, window)]
        first = max(begin, lane_start) - lane_start
        self._windows[lane] = ((epoch, window), first, samples)
        return first, samples

    def _epoch_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (block numbers in the epoch's order, samples up to the end of each); the last epoch is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            blocks = _permutation(int(self._block_ends[-1]), self.seed, Purpose.BLOCKS, epoch)
            low, high = self._block_bounds(blocks)
            self._epoch = (epoch, blocks, np.cumsum(high - low))
        return self._epoch[1], self._epoch[2]

    def _block_bounds(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the global sample ids where the given blocks start and stop."""
        shard = np.searchsorted(self._block_ends, blocks, side="right")
        count, pieces, base = self._counts[shard], self._shard_blocks[shard], self._shard_starts[shard]
        number = blocks - (self._block_ends[shard] - pieces)
        return base + number * count // pieces, base + (number + 1) * count // pieces

    def _block_samples(self, blocks: np.ndarray) -> np.ndarray:
        low, high = self._block_bounds(blocks)
        lengths = high - low
        before = np.cumsum(lengths) - lengths
        return np.repeat(low - before, lengths) + np.arange(int(lengths.sum()))


def _permutation(length: int, seed: int, purpose: Purpose, *position: int) -> np.ndarray:
    """Return a permutation of range(length), int64, a function of the arguments only.

    Random high bits over the index in the low bits, sorted: NumPy promises the raw Philox stream to stay the same over
    its versions, which it does not for `Generator.permutation`, and this sort is no slower.
    """
    bits = max(1, (length - 1).bit_length())
    counter = [0, *position, 0, 0, 0][:4]
    raw = np.random.Philox(key=[seed, purpose], counter=counter).random_raw(length)
    low = np.uint64((1 << bits) - 1)
    raw = (raw & ~low) | np.arange(length, dtype=np.uint64)
    raw.sort()
    return (raw & low).astype(np.int64)

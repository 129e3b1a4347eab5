"""Sample order: (seed, lane, offset) -> global sample ids. Pure NumPy, no I/O, no state.

An epoch permutes the blocks of all shards, cuts the permuted stream into L equal lanes and shuffles every lane in
windows. Lanes run on into the next epoch. Every draw is counter-based (Philox), keyed by what it is for, so any
position of the run is reached directly.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.config import DataConfig
from datasets.loading.class_sampling import ClassSampling, class_sampling
from datasets.shards.manifest import DatasetManifest
from datasets.transforms.randomness import Purpose, permutation

_ORDER_VERSION = 1
_SUM_EVERY = 64
_MOST_BLOCKS = 1 << 20
"""Blocks of an epoch, about: permuting more of them takes longer than a start should."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The shuffled samples of one window of a lane."""

    epoch: int
    first: int
    """Lane offset in the epoch of its first sample."""
    samples: np.ndarray
    uses: np.ndarray | None
    """How often the run has used each before; None: once in each epoch before."""


class _EpochBlocks:
    """The blocks of one epoch in order, and where they lie in its stream; sums are kept for every 64th block only."""

    def __init__(self, order: np.ndarray, sizes: np.ndarray) -> None:
        self.order, self._sizes = order, sizes
        sums = np.add.reduceat(sizes[order], np.arange(0, len(order), _SUM_EVERY), dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(sums)])

    def find(self, position: int) -> int:
        """Return the place of the block that holds a position of the stream."""
        group = int(np.searchsorted(self._starts, position, side="right")) - 1
        ends = self._starts[group] + np.cumsum(self._group_sizes(group), dtype=np.int64)
        return group * _SUM_EVERY + int(np.searchsorted(ends, position, side="right"))

    def start_of(self, place: int) -> int:
        """Return the position of the stream where the block at `place` starts."""
        group, within = divmod(place, _SUM_EVERY)
        return int(self._starts[group]) + int(self._group_sizes(group)[:within].sum(dtype=np.int64))

    def _group_sizes(self, group: int) -> np.ndarray:
        return self._sizes[self.order[group * _SUM_EVERY : (group + 1) * _SUM_EVERY]]


class SampleOrder:
    """The order in which a run uses its samples: L lanes of global sample ids, over all epochs.

    Args:
        shard_counts: samples per shard; a global sample id counts through the shards in this order.
        seed: of the run; another seed is another order.
        num_lanes: L, the number of fixed streams that the epoch is cut into.
        block_size: samples that stay together when the epoch is permuted, at most. Smaller where the dataset is so
            small that a lane would get less than one window of blocks; larger where an epoch would have more than about
            a million of them.
        window_blocks: blocks that are shuffled together inside a lane; fewer where the blocks are larger than
            `block_size`, so that a window has no more samples.
        sampling: how often an epoch takes each sample; None: once. A block is as large in an epoch as its samples are
            taken then, so what is repeated lies within one window.

    Raises:
        ValueError: fewer samples than lanes, or an argument out of its range.
    """

    def __init__(
        self,
        shard_counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        num_lanes: int,
        block_size: int,
        window_blocks: int,
        sampling: ClassSampling | None = None,
    ) -> None:
        counts = np.asarray(shard_counts, dtype=np.int64)
        for name, value in (("num_lanes", num_lanes), ("block_size", block_size), ("window_blocks", window_blocks)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}; it must be at least 0 and below 2^64")
        total = int(counts.sum())
        if total < num_lanes:
            raise ValueError(f"num_lanes is {num_lanes}, but there are only {total} samples; use fewer lanes")
        self.seed, self.num_lanes, self.sampling = seed, num_lanes, sampling
        least = -(-total // _MOST_BLOCKS)
        if least > block_size:
            window_blocks, block_size = max(1, window_blocks * block_size // least), least
        self.window_blocks = window_blocks
        self.block_size = max(1, min(block_size, total // (num_lanes * window_blocks)))
        self.lane_length = total // num_lanes
        """Samples of one lane in one epoch."""
        # A shard of n samples has b = ceil(n / block) blocks; the first n % b of them have one sample more.
        self._counts = counts
        self._shard_starts = np.cumsum(counts) - counts
        self._shard_blocks = -(-counts // self.block_size)
        self._block_ends = np.cumsum(self._shard_blocks)
        self._sizes = self._all_block_sizes()
        self._epochs: dict[int, _EpochBlocks] = {}
        self._windows: dict[int, _Window] = {}

    def fresh(self) -> SampleOrder:
        """Return the same order without what is kept of it, for another thread."""
        other = copy.copy(self)
        other._epochs, other._windows = {}, {}
        return other

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch uses: L * (N // L)."""
        return self.num_lanes * self.lane_length

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that fixes the order; equal digests mean equal orders."""
        head = np.array([_ORDER_VERSION, self.num_lanes, self.block_size, self.window_blocks], dtype="<i8")
        digest = hashlib.sha256(str(self.seed).encode() + head.tobytes() + self._counts.astype("<i8").tobytes())
        if self.sampling is not None:
            digest.update(b"sampling" + self.sampling.counts.astype("<i8").tobytes())
            digest.update(self.sampling.taken.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def lane_samples(self, lane: int, start: int, stop: int) -> np.ndarray:
        """Return the global sample ids of a lane's offsets [start, stop) of the whole run, int64 [stop - start]."""
        return self.lane_uses(lane, start, stop)[0]

    def lane_uses(self, lane: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what `lane_samples` does, and how often the run has used each sample before, int64 both."""
        assert 0 <= lane < self.num_lanes
        assert 0 <= start <= stop
        samples: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        uses: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.lane_length)
            window = self._window(epoch, lane, offset)
            part = slice(offset - window.first, offset - window.first + stop - start)
            samples.append(window.samples[part])
            uses.append(np.full(len(samples[-1]), epoch) if window.uses is None else window.uses[part])
            start += len(samples[-1])
        return np.concatenate(samples), np.concatenate(uses)

    def shards_ahead(self, lane: int, offset: int, num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of a lane's next blocks, and the lane offsets at which their windows begin.

        About `num_blocks` blocks from the window at `offset` on, of this epoch and the next; a window is shuffled as a
        whole, so all its blocks are used from its beginning on.
        """
        epoch, within = divmod(offset, self.lane_length)
        parts = [self._blocks_ahead(lane, epoch, within, num_blocks)]
        if (rest := num_blocks - len(parts[0][0])) > 0:
            parts.append(self._blocks_ahead(lane, epoch + 1, 0, rest))
        shards, begins = zip(*parts, strict=True)
        return np.concatenate(shards), np.concatenate(begins)

    def _blocks_ahead(self, lane: int, epoch: int, within: int, num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
        blocks, lane_start, width = self._epoch_blocks(epoch), lane * self.lane_length, self.window_blocks
        first = blocks.find(lane_start)
        end = blocks.find(lane_start + self.lane_length - 1) + 1
        low = first + (blocks.find(lane_start + within) - first) // width * width
        high = min(low + max(num_blocks, width), end)
        shards = np.searchsorted(self._block_ends, blocks.order[low:high].astype(np.int64), side="right")
        starts = [max(blocks.start_of(place) - lane_start, 0) for place in range(low, high, width)]
        return shards, np.repeat(np.array(starts) + epoch * self.lane_length, width)[: high - low]

    def _window(self, epoch: int, lane: int, offset: int) -> _Window:
        """Return the window of a lane that holds the lane's `offset` of the epoch; each lane's last one is kept."""
        kept = self._windows.get(lane)
        if kept is not None and kept.epoch == epoch and kept.first <= offset < kept.first + len(kept.samples):
            return kept
        blocks = self._epoch_blocks(epoch)
        lane_start = lane * self.lane_length
        first_block = blocks.find(lane_start)
        number = (blocks.find(lane_start + offset) - first_block) // self.window_blocks
        low = first_block + number * self.window_blocks
        begin = blocks.start_of(low)
        samples, uses = self._block_samples(blocks.order[low : low + self.window_blocks]), None
        if self.sampling is not None:
            samples, uses = _repeated(samples, self.sampling, epoch)
        inside = slice(max(lane_start - begin, 0), lane_start + self.lane_length - begin)
        shuffled = permutation(len(samples[inside]), self.seed, Purpose.WINDOW, epoch, lane, number)
        self._windows[lane] = _Window(
            epoch,
            max(begin - lane_start, 0),
            samples[inside][shuffled],
            None if uses is None else uses[inside][shuffled],
        )
        return self._windows[lane]

    def _epoch_blocks(self, epoch: int) -> _EpochBlocks:
        """Return the epoch's blocks in order; the last two epochs are kept, since lanes roll over one by one."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            order = permutation(len(self._sizes), self.seed, Purpose.BLOCKS, epoch)
            sizes = self._sizes
            if self.sampling is not None:
                starts = np.cumsum(self._sizes, dtype=np.int64) - self._sizes
                sizes = np.add.reduceat(self.sampling.uses_in(epoch, slice(None)), starts)
                order = order[sizes[order] > 0]
            self._epochs[epoch] = _EpochBlocks(order, sizes)
        return self._epochs[epoch]

    def _all_block_sizes(self) -> np.ndarray:
        """Return the samples of every block in the shards' order, in the smallest type that holds them."""
        small, larger = np.divmod(self._counts, np.maximum(self._shard_blocks, 1))
        sizes = np.stack([small + 1, small], axis=1).astype(np.min_scalar_type(self.block_size))
        return np.repeat(sizes.ravel(), np.stack([larger, self._shard_blocks - larger], axis=1).ravel())

    def _block_bounds(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the global sample ids where the given blocks start and stop."""
        blocks = blocks.astype(np.int64)
        shard = np.searchsorted(self._block_ends, blocks, side="right")
        pieces = self._shard_blocks[shard]
        number = blocks - (self._block_ends[shard] - pieces)
        small, larger = np.divmod(self._counts[shard], pieces)
        low = self._shard_starts[shard] + number * small + np.minimum(number, larger)
        return low, low + small + (number < larger)

    def _block_samples(self, blocks: np.ndarray) -> np.ndarray:
        low, high = self._block_bounds(blocks)
        lengths = high - low
        before = np.cumsum(lengths) - lengths
        return np.repeat(low - before, lengths) + np.arange(int(lengths.sum()))


def _repeated(samples: np.ndarray, sampling: ClassSampling, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return samples as often as an epoch takes them, one after another, and the uses of each before."""
    times = sampling.uses_in(epoch, samples)
    firsts = np.repeat(np.cumsum(times) - times, times)
    return np.repeat(samples, times), np.repeat(sampling.uses_before(epoch, samples), times) + (
        np.arange(len(firsts)) - firsts
    )


def sample_order(config: DataConfig, manifest: DatasetManifest, *, seed: int) -> SampleOrder:
    """Return the order in which a run with this configuration and seed uses the samples.

    Raises:
        DataError: `data.sampling` doesn't go with the data, or their index can't be read.
        ValueError: fewer samples than lanes.
    """
    return SampleOrder(
        manifest.shard_counts,
        seed=seed,
        num_lanes=config.num_lanes,
        block_size=config.block_size,
        window_blocks=config.window_blocks,
        sampling=class_sampling(config, manifest, seed=seed),
    )

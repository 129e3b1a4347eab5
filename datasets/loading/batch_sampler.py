"""The samples of each step: batch samplers over the sample order, and over the validation set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from datasets.errors import DataError
from datasets.loading.sample_order import SampleOrder
from datasets.shards.manifest import DatasetManifest

_BLOCKS_AHEAD = 4096
"""Blocks of each lane for which a plan is made; what is used later counts as never used."""


class Step(NamedTuple):
    """One rank's samples of a step, lane-major."""

    streams: np.ndarray
    """stream indices, int64 [B]"""
    ids: np.ndarray
    """sample ids, int64 [B]"""
    uses: np.ndarray
    """how often the run has used each sample before, int64 [B]"""
    cursor: int
    """of the step: the same on all ranks"""


class TrainSteps:
    """One rank's part of the steps at cursor, cursor + batch_size, ... below stop; `every` other samples apart."""

    def __init__(
        self,
        order: SampleOrder,
        manifest: DatasetManifest,
        *,
        batch_size: int,
        cursor: int,
        stop: int,
        rank: int,
        world_size: int,
        every: int = 0,
    ) -> None:
        if cursor % order.num_lanes:
            raise DataError(f"cursor {cursor} is not a multiple of data.num_lanes={order.num_lanes}")
        self.order, self.batch_size = order, batch_size
        self.cursors = range(cursor, stop, every or batch_size)
        self._ahead = order.fresh()
        self._mix = None if all(shard.weight == 1 for shard in manifest.shards) else _Mix(manifest)
        share = order.num_lanes // world_size
        self.lanes = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.cursors)

    def __iter__(self) -> Iterator[Step]:
        lanes = self.order.num_lanes
        for cursor in self.cursors:
            offsets = np.arange(cursor // lanes, (cursor + self.batch_size) // lanes)
            parts = [self._lane(lane, offsets) for lane in self.lanes]
            ids, uses = (np.concatenate(part) for part in zip(*parts, strict=True))
            yield Step(np.concatenate([offsets * lanes + lane for lane in self.lanes]), ids, uses, cursor)

    def shards_ahead(self, cursor: int) -> list[tuple[int, int]]:
        """Return (shard, samples from `cursor` until it is used) for what this rank's lanes use next, nearest first."""
        lanes, nearest = self.order.num_lanes, dict[int, int]()
        for lane in self.lanes:
            shards, offsets = self._ahead.shards_ahead(lane, cursor // lanes, _BLOCKS_AHEAD)
            for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True):
                distance = max(0, offset * lanes - cursor)
                nearest[shard] = min(distance, nearest.get(shard, distance))
        return sorted(nearest.items(), key=lambda item: item[1])

    def _lane(self, lane: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, uses = self.order.lane_uses(lane, int(offsets[0]), int(offsets[-1]) + 1)
        return (ids, uses) if self._mix is None else self._mix.samples(ids, uses)


class _Mix:
    """A weighted mix: the order counts what an epoch uses of each shard; this says which samples those are."""

    def __init__(self, manifest: DatasetManifest) -> None:
        self._used = manifest.shard_counts
        self._counts = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        self._used_ends, self._starts = np.cumsum(self._used), np.cumsum(self._counts) - self._counts

    def samples(self, ids: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sample ids of the order's ids, and their uses before: an epoch continues where the last ended."""
        shard = np.searchsorted(self._used_ends, ids, side="right")
        within = ids - (self._used_ends[shard] - self._used[shard]) + epochs * self._used[shard]
        uses, place = np.divmod(within, self._counts[shard])
        return self._starts[shard] + place, uses


class EvalSteps:
    """One rank's chunks of the validation set: chunk i goes to rank i % world_size, the last one is short."""

    def __init__(self, manifest: DatasetManifest, *, batch_size: int, rank: int, world_size: int) -> None:
        self.num_samples, self.batch_size = manifest.num_samples, batch_size
        self.starts = range(rank * batch_size, self.num_samples, world_size * batch_size)
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])

    def __len__(self) -> int:
        return len(self.starts)

    def shards_ahead(self, cursor: int) -> list[tuple[int, int]]:
        """Return (shard, samples from `cursor` until it is used) for the rest of the set, nearest first."""
        first = int(np.searchsorted(self._ends, cursor, side="right"))
        begins = np.concatenate([[0], self._ends[:-1]])
        return [(shard, max(0, int(begins[shard]) - cursor)) for shard in range(first, len(self._ends))]

    def __iter__(self) -> Iterator[Step]:
        for start in self.starts:
            ids = np.arange(start, min(start + self.batch_size, self.num_samples))
            yield Step(ids, ids, np.zeros_like(ids), start)

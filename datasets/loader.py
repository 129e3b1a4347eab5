"""From the cursor to batches: which samples, read by offset, decoded and augmented into one uint8 tensor a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.augment import rand_augment, random_flip
from datasets.config import DataConfig, check_divisibility
from datasets.decode import decode_crop, eval_crop, random_crop, read_header
from datasets.errors import DataError
from datasets.order import SampleOrder
from datasets.randomness import Purpose, sample_generator
from datasets.reader import Sample, SampleReader
from datasets.shards import load_manifest


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of a step, lane-major."""

    images: torch.Tensor
    """uint8 [B, 3, H, W], in channels_last memory"""
    labels: torch.Tensor
    """int64 [B]"""
    stream_index: torch.Tensor
    """int64 [B]; lane offset * L + lane in training, position in the validation set in evaluation"""

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, so that the device can fetch it while the host goes on."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.stream_index)


def build_loader(
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    magnitude: float,
    seed: int,
    cursor: int,
    stop: int,
    rank: int,
    world_size: int,
) -> Batches:
    """Return one rank's batches of the steps at cursor, cursor + batch_size, ... below `stop`.

    Args:
        config: the data and its augmentation.
        image_size: side of the square crops in pixels.
        batch_size: G, samples of a step over all ranks.
        magnitude: RandAugment's, on the paper's scale (10 is the full range); 0 turns it off.
        seed: of the run.
        cursor: samples that the run consumed before; a multiple of the lanes.
        stop: cursor at which the stage ends.
        rank: of this worker.
        world_size: R, workers that share the step.

    Raises:
        DataError: shards that can't be read, or numbers that don't divide each other.
    """
    check_divisibility(config, batch_sizes=[batch_size], worker_counts=[world_size])
    manifest = load_manifest(config.train)
    order = sample_order(config, manifest.shard_counts, seed=seed)
    steps = _TrainSteps(order, batch_size, cursor, stop, rank, world_size)
    return Batches(_TrainSamples(SampleReader(manifest), config, image_size, magnitude, seed), steps, config)


def build_eval_loader(config: DataConfig, *, image_size: int, batch_size: int, rank: int, world_size: int) -> Batches:
    """Return one rank's share of the validation set, cut into chunks of `batch_size` in the order of the shards.

    Chunk i goes to rank i % world_size, so the chunks are the same for any number of workers; the last one is short.

    Raises:
        DataError: shards that can't be read.
    """
    manifest = load_manifest(config.val)
    chunks = _EvalChunks(manifest.num_samples, batch_size, rank, world_size)
    return Batches(_EvalSamples(SampleReader(manifest), config, image_size), chunks, config)


def sample_order(config: DataConfig, shard_counts: np.ndarray, *, seed: int) -> SampleOrder:
    """Return the order in which a run with this configuration and seed uses the samples."""
    return SampleOrder(
        shard_counts,
        seed=seed,
        num_lanes=config.num_lanes,
        block_size=config.block_size,
        window_blocks=config.window_blocks,
    )


class _TrainSteps:
    """Batch sampler: for each step, this rank's (stream indices, sample ids), each int64 [B], lane-major."""

    def __init__(self, order: SampleOrder, batch_size: int, cursor: int, stop: int, rank: int, world_size: int) -> None:
        if cursor % order.num_lanes:
            raise DataError(f"cursor {cursor} is no multiple of data.num_lanes={order.num_lanes}")
        self.order, self.batch_size, self.cursors = order, batch_size, range(cursor, stop, batch_size)
        share = order.num_lanes // world_size
        self.lanes = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.cursors)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        lanes = self.order.num_lanes
        for cursor in self.cursors:
            offsets = np.arange(cursor // lanes, (cursor + self.batch_size) // lanes)
            start, stop = int(offsets[0]), int(offsets[-1]) + 1
            streams = np.concatenate([offsets * lanes + lane for lane in self.lanes])
            yield streams, np.concatenate([self.order.lane_samples(lane, start, stop) for lane in self.lanes])


class _EvalChunks:
    """Batch sampler: this rank's chunks of the validation set."""

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        self.num_samples, self.batch_size = num_samples, batch_size
        self.starts = range(rank * batch_size, num_samples, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in self.starts:
            ids = np.arange(start, min(start + self.batch_size, self.num_samples))
            yield ids, ids


class _Samples(Dataset[Batch]):
    """Map-style dataset whose items are whole batches, written straight into one tensor."""

    def __init__(self, reader: SampleReader, config: DataConfig, image_size: int) -> None:
        self.reader, self.config, self.image_size = reader, config, image_size

    def __len__(self) -> int:
        return self.reader.manifest.num_samples

    def __getitems__(self, indices: tuple[np.ndarray, np.ndarray]) -> Batch | DataError:
        try:
            return self._batch(*indices)
        except DataError as error:
            # Raised in a loader process it would arrive as a traceback in a string; returned, it stays one line.
            return error

    def _batch(self, streams: np.ndarray, ids: np.ndarray) -> Batch:
        images = _empty_images(len(ids), self.image_size)
        rows = images.permute(0, 2, 3, 1).numpy()
        labels = np.empty(len(ids), dtype=np.int64)
        for row, (stream_index, sample_id) in enumerate(zip(streams.tolist(), ids.tolist(), strict=True)):
            sample = self.reader.read(sample_id)
            try:
                pixels = self._image(sample, stream_index)
            except ValueError as error:
                raise DataError(f"{self.reader.describe(sample_id)}: {error}") from error
            rows[row] = pixels
            labels[row] = sample.label
        return Batch(images, torch.from_numpy(labels), torch.from_numpy(streams))

    def _image(self, sample: Sample, stream_index: int) -> np.ndarray:
        raise NotImplementedError


class _TrainSamples(_Samples):
    def __init__(self, reader: SampleReader, config: DataConfig, image_size: int, magnitude: float, seed: int) -> None:
        super().__init__(reader, config, image_size)
        self.magnitude, self.seed = magnitude, seed

    def _image(self, sample: Sample, stream_index: int) -> np.ndarray:
        config = self.config
        generator = sample_generator(self.seed, Purpose.AUGMENT, stream_index)
        header = read_header(sample.data)
        box = random_crop(header, generator, area=config.crop_area, ratio=config.crop_ratio)
        pixels = decode_crop(sample.data, header, box, self.image_size)
        if config.flip:
            pixels = random_flip(pixels, generator)
        return rand_augment(pixels, generator, magnitude=self.magnitude, layers=config.randaugment_layers)


class _EvalSamples(_Samples):
    def _image(self, sample: Sample, stream_index: int) -> np.ndarray:
        header = read_header(sample.data)
        box = eval_crop(header, self.image_size, rule=self.config.eval_crop)
        return decode_crop(sample.data, header, box, self.image_size)


def _empty_images(count: int, size: int) -> torch.Tensor:
    """Return uint8 [count, 3, size, size] in channels_last memory; in a loader process the parent maps it, uncopied."""
    shape = (count, size, size, 3)
    if get_worker_info() is None:
        images = torch.empty(shape, dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))
        images = torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]
    return images.permute(0, 3, 1, 2)


class Batches:
    """The batches of one stage or one evaluation; iterated once or more, always from its start."""

    def __init__(self, samples: _Samples, steps: _TrainSteps | _EvalChunks, config: DataConfig) -> None:
        self._length = len(steps)
        self._loader = DataLoader(
            samples,
            batch_sampler=steps,  # type: ignore[arg-type]
            num_workers=config.loader_workers,
            collate_fn=_same,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=config.prefetch_batches if config.loader_workers else None,
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _same(batch: Any) -> Any:
    return batch

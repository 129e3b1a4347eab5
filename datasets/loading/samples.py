"""From sample ids to a batch: reads, decodes, augments, and replaces corrupt samples; runs in loader processes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.batch import Batch, DamagedSample, empty_images, empty_masks
from datasets.loading.reader import Reader, Sample
from datasets.shards.manifest import DatasetManifest
from datasets.transforms.augment import rand_augment, random_flip_pair
from datasets.transforms.decode import CROP_DRAWS, Box, Crop, cut_out, decode_mask, eval_crop, image_header, random_crop
from datasets.transforms.formats import IGNORED
from datasets.transforms.mixing import MixingRule
from datasets.transforms.pixels import Header
from datasets.transforms.randaugment_policies import POLICIES
from datasets.transforms.randomness import Purpose, sample_generator, uniforms

log = logging.getLogger(__name__)

RESIZED_TOGETHER = 4 << 20
"""Bytes of crops that are resized in a row: between two decodes a resize takes half as long again, since each pushes
the other's code out of the processor's cache. No more than its second-level cache has room for."""
_REPLACEMENTS = 16
_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")
"""Where an object is in memory, as Pillow says it: another address each time would make it another message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How samples are looked at in one stage, or in an evaluation."""

    image_size: int
    """Short side of the crops in pixels; `data.aspect_ratio` says how long the other one is."""
    magnitude: float = 0.0
    """RandAugment's, on the scale of `data.randaugment_policy`; 0: off."""
    seed: int = 0
    """Of the run."""
    crop_area: tuple[float, float] | None = None
    """Smallest and largest share of the image's area that a training crop takes; None: `data.crop_area`."""
    central: bool = False
    """Take the evaluation's crop in training too, from the shards themselves."""
    training: bool
    """Random crops and augmentation, or the evaluation's crop."""
    short_side: int = 0
    """Which copy of the shards is read: that of this short side in pixels, or 0 for the shards themselves."""
    random_sizes: tuple[int, ...] = ()
    """Short sides of the crops in `random_size_share` of the steps, in pixels."""
    random_size_share: float = 0.0
    """Share of the steps whose crops are of a random size, drawn by seed and cursor."""
    mixing: MixingRule | None = None
    """What is drawn for Mixup and CutMix; None: nothing."""

    def at(self, cursor: int) -> View:
        """Return the view of the step at a cursor: another image size, where it is drawn that it has a random one."""
        if not self.random_size_share:
            return self
        chosen, which = uniforms(self.seed, Purpose.IMAGE_SIZE, np.array([cursor]), 2)[0]
        if chosen >= self.random_size_share:
            return self
        return replace(self, image_size=self.random_sizes[int(which * len(self.random_sizes))])


class Request(NamedTuple):
    """One batch to be made."""

    view: View
    streams: np.ndarray
    """int64 [B]"""
    ids: np.ndarray
    """int64 [B]"""
    uses: np.ndarray
    """int64 [B]: how often the run has used each sample before"""


class _Decoded(NamedTuple):
    crop: Crop
    label: int | np.ndarray
    """class number, uint8 [K] of a multi-label sample, or float32 [N] targets"""
    mask: np.ndarray | None
    """uint8 [H, W]"""


class Samples(Dataset[Batch]):
    """Map-style dataset whose items are whole batches, written straight into one tensor.

    Args:
        readers: by the short side of their copy; 0 is the shards themselves.
        config: of the data.
    """

    def __init__(self, readers: Mapping[int, Reader], config: DataConfig) -> None:
        self.readers, self.config = readers, config
        self.policy = POLICIES[config.randaugment_policy]

    def __len__(self) -> int:
        return self.readers[0].manifest.num_samples

    def __getitems__(self, request: Request) -> Batch | DataError:
        try:
            return self.batch(request)
        except DataError as error:
            # Raised in a loader process it would arrive as a traceback in a string; returned, it stays one line.
            return error

    def batch(self, request: Request) -> Batch:
        """Make one batch.

        Raises:
            DataError: shards that can't be read.
        """
        view, reader = request.view, self.readers[request.view.short_side]
        count, shape = len(request.ids), self.config.shape(view.image_size)
        images, damaged, kept = empty_images(count, shape, self.config.pixels), [], []
        rows, labels = images.permute(0, 2, 3, 1).numpy(), _empty_labels(count, reader.manifest)
        masks = empty_masks(count, shape) if reader.manifest.kind == "segmentation" else None
        draws, waiting = self._draws(request), list[tuple[int, _Decoded]]()
        held = 0  # bytes of crops that wait
        for row, sample in enumerate(reader.read_each(request.ids.tolist())):
            try:
                decoded = self._decode(sample, draws[row], view, reader)
            except (ValueError, OverflowError, MemoryError) as error:
                place, stream = reader.describe(int(request.ids[row])), int(request.streams[row])
                damaged.append(DamagedSample(stream, f"{place}: {_ADDRESS.sub('', str(error))}"))
                if not view.training:
                    continue
                decoded = self._replacement(int(request.streams[row]), draws[row], view, reader)
            labels[row] = decoded.label
            waiting.append((row, decoded))
            kept.append(row)
            held += decoded.crop.pixels.nbytes
            if held >= RESIZED_TOGETHER:
                self._resize(waiting, draws, view, rows, masks)
                held = 0
        self._resize(waiting, draws, view, rows, masks)
        if view.training:
            layers = [row[CROP_DRAWS + 1 :] for row in draws]
            rand_augment(
                rows,
                None if masks is None else masks.numpy(),
                layers,
                policy=self.policy,
                magnitude=view.magnitude,
            )
        mixing = None
        if view.mixing is not None:
            mixing = view.mixing.draw(request.streams, seed=view.seed, shape=shape)
        streams = torch.from_numpy(request.streams)
        batch = Batch(images, torch.from_numpy(labels), streams, masks, tuple(damaged), mixing)
        # Without those that couldn't be decoded: there may be none left.
        return batch if len(kept) == len(labels) else batch.rows(torch.tensor(kept, dtype=torch.int64))

    def _resize(
        self,
        waiting: list[tuple[int, _Decoded]],
        draws: list[list[float]],
        view: View,
        rows: np.ndarray,
        masks: torch.Tensor | None,
    ) -> None:
        """Write what waits into its rows of the batch, resized and mirrored; nothing waits any more."""
        for row, decoded in waiting:
            image, mask = decoded.crop.resized(self.config.shape(view.image_size)), decoded.mask
            if view.training and self.config.flip:
                image, mask = random_flip_pair(image, mask, draws[row][CROP_DRAWS])
            rows[row] = image
            if masks is not None:
                masks.numpy()[row] = mask
        waiting.clear()

    def _draws(self, request: Request) -> list[list[float]]:
        """Return the random numbers of each sample's crop, flip and RandAugment; none in an evaluation."""
        view = request.view
        if not view.training:
            return [[]] * len(request.ids)
        count = CROP_DRAWS + 1 + self.policy.draws_per_layer * self.config.randaugment_layers
        draws = uniforms(view.seed, Purpose.AUGMENT, request.streams, count)
        if self.config.flip_order == "alternating":
            draws[:, CROP_DRAWS] = alternating(uniforms(view.seed, Purpose.FLIP, request.ids, 1)[:, 0], request.uses)
        return draws.tolist()

    def _replacement(self, stream: int, draws: list[float], view: View, reader: Reader) -> _Decoded:
        """Return another sample in a damaged one's place: a pure function of seed and stream index."""
        for draw in sample_generator(view.seed, Purpose.REPLACE, stream).random(_REPLACEMENTS):
            other = int(draw * reader.manifest.num_samples)
            try:
                return self._decode(reader.read(other), draws, view, reader)
            except (ValueError, OverflowError, MemoryError) as error:
                if isinstance(error, DataError):
                    raise
                log.debug("replacement %s is corrupt too: %s", other, error)
        raise DataError(
            f"{reader.manifest.shards[0].index_folder}: {_REPLACEMENTS} samples in a row are corrupt; "
            "write the shards again"
        )

    def _decode(self, sample: Sample, draws: list[float], view: View, reader: Reader) -> _Decoded:
        pixels, shape = self.config.pixels, self.config.shape(view.image_size)
        header = image_header(sample.data, pixels, max_pixels=self.config.max_pixels)
        box = self._box(header, draws, view)
        crop = cut_out(sample.data, header, box, shape, pixels)
        mask = decode_mask(sample.mask, header, box, shape) if sample.mask else None
        if mask is not None:
            _check_mask(mask, len(reader.manifest.classes))
        return _Decoded(crop, _label(sample, reader.manifest), mask)

    def _box(self, header: Header, draws: list[float], view: View) -> Box:
        """Return the part of an image that a view takes."""
        config = self.config
        if view.central or not view.training:
            return eval_crop(header, config.shape(view.image_size), rule=config.eval_crop)
        low, high = (ratio * config.aspect_ratio for ratio in config.crop_ratio)
        return random_crop(header, draws, area=view.crop_area or config.crop_area, ratio=(low, high))


def multi_hot(labels: tuple[int, ...], num_classes: int) -> np.ndarray:
    """Return uint8 [K] with 1 for each of the classes."""
    row = np.zeros(num_classes, dtype=np.uint8)
    row[list(labels)] = 1
    return row


def _label(sample: Sample, manifest: DatasetManifest) -> int | np.ndarray:
    """Return a row of `Batch.labels`."""
    if manifest.kind == "multilabel":
        return multi_hot(sample.labels, len(manifest.classes))
    return np.array(sample.targets, dtype=np.float64) if manifest.kind == "regression" else sample.label


def _empty_labels(count: int, manifest: DatasetManifest) -> np.ndarray:
    if manifest.kind == "multilabel":
        return np.empty((count, len(manifest.classes)), dtype=np.uint8)
    if manifest.kind == "regression":
        return np.empty((count, len(manifest.classes)), dtype=np.float64)
    return np.empty(count, dtype=np.int64)


def alternating(draws: np.ndarray, uses: np.ndarray) -> np.ndarray:
    """Return each sample's draw in [0, 1) at every second use of it, and its mirror at the others."""
    return np.where(uses % 2, (draws + 0.5) % 1.0, draws)


def _check_mask(mask: np.ndarray, num_classes: int) -> None:
    known = mask[mask != IGNORED]
    if known.size and known.max() >= num_classes:
        raise ValueError(f"the mask has value {known.max()}, but {num_classes} classes allow 0 to {num_classes - 1}")

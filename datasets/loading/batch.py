"""The batch that a loader passes on for each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info

from datasets.transforms.formats import RGB, PixelFormat
from datasets.transforms.shape import Shape


class DamagedSample(NamedTuple):
    """A sample that can't be decoded."""

    stream_index: int
    """as `Batch.stream_index`: which sample it is, in any process and after any restart"""
    message: str
    """one line with shard and key, always the same for the same sample"""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of a step, lane-major."""

    images: torch.Tensor
    """uint8 [B, 3, H, W], or float32 [B, C, H, W] of pixels that aren't RGB, in channels_last memory"""
    labels: torch.Tensor
    """int64 [B]; -1 in segmentation; uint8 [B, K] with 1 for each class of a multi-label sample; float64 [B, N] targets
    in regression, which may be far from 0 in their deviations"""
    stream_index: torch.Tensor
    """int64 [B]; lane offset * L + lane in training, position in the validation set in evaluation"""
    masks: torch.Tensor | None = None
    """uint8 [B, H, W] in segmentation: the class of each pixel, 255 where there is none to learn"""
    damaged: tuple[DamagedSample, ...] = ()
    """Replaced in training, left out in evaluation: a batch of an evaluation may have no other samples at all"""

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, so that the device can fetch it while the host continues."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory(), masks=masks)


def empty_images(count: int, shape: Shape, pixels: PixelFormat = RGB) -> torch.Tensor:
    """Return uint8 [count, 3, H, W] in channels_last memory; in a loader process the parent maps it, uncopied.

    Of other pixels than RGB it is float32 [count, C, H, W].
    """
    dtype = torch.uint8 if pixels.is_rgb else torch.float32
    return _empty((count, *shape, pixels.channels), dtype).permute(0, 3, 1, 2)


def empty_masks(count: int, shape: Shape) -> torch.Tensor:
    """Return uint8 [count, H, W], in memory as that of `empty_images`."""
    return _empty((count, *shape))


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]

"""The batch that a loader passes on for each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info

from datasets.transforms.formats import RGB, PixelFormat
from datasets.transforms.mixing import Mixing
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
    mixing: Mixing | None = None
    """Mixup's and CutMix's draws, where the stage mixes"""

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, so that the device can fetch it while the host continues."""
        return self.each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """Return it on a device; from page-locked memory the host doesn't wait for the copy."""
        return self.each(lambda one: one.to(device, non_blocking=True))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return it with every tensor copied in the same way."""
        return replace(
            self,
            images=change(self.images),
            labels=change(self.labels),
            stream_index=change(self.stream_index),
            masks=None if self.masks is None else change(self.masks),
            mixing=None if self.mixing is None else self.mixing.each(change),
        )

    def rows(self, rows: slice | torch.Tensor) -> Batch:
        """Return some of the samples, as they are before they are mixed: a slice, or int64 [b] on the same device."""
        return replace(
            self,
            images=self.images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2),  # channels_last stays so
            labels=self.labels[rows],
            stream_index=self.stream_index[rows],
            masks=None if self.masks is None else self.masks[rows],
            mixing=None,
        )


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

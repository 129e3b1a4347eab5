"""Mixup and CutMix within each lane of a batch: drawn on the host by the stream indices, applied on the device.

The draws are made where a batch is, in a loader process, and arrive with it: for 4,096 samples they take longer than
a GPU's host has between two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from datasets.transforms.randomness import Purpose, uniforms
from datasets.transforms.shape import Shape


class Mixing(NamedTuple):
    """How each sample of a batch is mixed with its partner: the mirror in its own lane's part of the batch, so that no
    rank needs another's samples.
    """

    partners: Tensor
    """int64 [B]: rows of the batch"""
    own: Tensor
    """float32 [B]: a sample's own share of its targets"""
    blend: Tensor | None
    """float32 [B] in [0.5, 1]: its own share of every pixel; None: no Mixup"""
    boxes: Tensor | None
    """int64 [B, 4], top, bottom, left, right: the pixels that are the partner's alone; None: no CutMix"""

    def each(self, change: Callable[[Tensor], Tensor]) -> Mixing:
        """Return it with every tensor changed: moved, or cut to some rows."""
        return Mixing(*(None if one is None else change(one) for one in self))  # type: ignore[arg-type]

    def of_pixels(self, values: Tensor, partners: Tensor) -> Tensor:
        """Return values [B, C, H, W] mixed with those of the partners, on one device with this."""
        mixed = values if self.blend is None else _blend(values, partners, self.blend)
        if self.boxes is None:
            return mixed
        top, bottom, left, right = self.boxes[:, :, None, None].unbind(1)
        y = torch.arange(values.shape[-2], device=values.device)[None, :, None]
        x = torch.arange(values.shape[-1], device=values.device)[None, None, :]
        return torch.where(((y >= top) & (y < bottom) & (x >= left) & (x < right))[:, None], partners, mixed)

    def of_targets(self, targets: Tensor, partners: Tensor) -> Tensor:
        """Return targets [B, K], blended by the shares, or [B, K, H, W], mixed as the images are."""
        if targets.ndim == 4:
            return self.of_pixels(targets, partners)
        return _blend(targets, partners, self.own)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingRule:
    """What a stage mixes: Mixup, CutMix, or, where both are on, one of them in each lane's part of a batch.

    Which one a lane gets is redrawn for each batch, half and half on average; the released code of EfficientNetV2
    splits its batches into halves.
    """

    mixup_alpha: float
    """Of the Beta distribution of a sample's own share; 0: no Mixup."""
    cutmix_alpha: float
    """Of that of the share of its pixels that a sample keeps; 0: no CutMix."""
    num_lanes: int
    """Lanes in a rank's batch, lane-major."""
    shape: Shape | None = None
    """Of the images as the network sees them, where it isn't that of the batch; None: it is."""

    def draw(self, stream_index: np.ndarray, *, seed: int, shape: Shape) -> Mixing | None:
        """Return the draws for the samples with these stream indices, int64 [B], in images of a shape; None: no mixing.

        Raises:
            ValueError: a lane has fewer than 2 samples in the batch, so there is nothing to mix with.
        """
        if not (self.mixup_alpha or self.cutmix_alpha):
            return None
        per_lane = len(stream_index) // self.num_lanes
        self._check_partners(per_lane)
        rows = np.arange(len(stream_index)).reshape(self.num_lanes, per_lane)
        partners = torch.from_numpy(np.ascontiguousarray(rows[:, ::-1]).ravel())
        shape = self.shape or shape
        blend = mixup_weights(stream_index, alpha=self.mixup_alpha, seed=seed) if self.mixup_alpha else None
        if not self.cutmix_alpha:
            assert blend is not None
            return Mixing(partners, blend, blend, None)
        boxes = cutmix_boxes(stream_index, alpha=self.cutmix_alpha, seed=seed, shape=shape)
        if blend is not None:
            cut = lanes_with_cutmix(stream_index, seed=seed, num_lanes=self.num_lanes)
            boxes, blend = boxes * cut[:, None], blend.masked_fill(cut, 1.0)
        areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        kept = 1.0 - areas.float() / (shape[0] * shape[1])
        return Mixing(partners, kept if blend is None else torch.where(cut, kept, blend), blend, boxes)

    def _check_partners(self, per_lane: int) -> None:
        name, alpha = ("mixup_alpha", self.mixup_alpha) if self.mixup_alpha else ("cutmix_alpha", self.cutmix_alpha)
        if per_lane < 2:
            raise ValueError(
                f"{name} is {alpha}, but a lane has {per_lane} sample in a batch; it needs 2 or more: "
                "use a larger batch_size or fewer data.num_lanes"
            )


def lanes_with_cutmix(stream_index: np.ndarray, *, seed: int, num_lanes: int) -> Tensor:
    """Return which samples get CutMix where Mixup is on too, bool [B]: drawn by each lane's first stream index."""
    firsts = stream_index.reshape(num_lanes, -1)[:, 0]
    draws = uniforms(seed, Purpose.MIX_KIND, firsts, 1)[:, 0]
    return torch.from_numpy(draws < 0.5).repeat_interleave(len(stream_index) // num_lanes)


def mixup_weights(stream_index: np.ndarray, *, alpha: float, seed: int) -> Tensor:
    """Return each sample's own share, float32 [B] in [0.5, 1]: max(w, 1 - w) with w ~ Beta(alpha, alpha)."""
    weights = _betas(uniforms(seed, Purpose.MIXUP, stream_index, 1)[:, 0], alpha)
    return torch.from_numpy(np.maximum(weights, 1.0 - weights).astype(np.float32))


def cutmix_boxes(stream_index: np.ndarray, *, alpha: float, seed: int, shape: Shape) -> Tensor:
    """Return the box of each sample that its partner fills, int64 [B, 4]: top, bottom, left, right.

    Its area is the share 1 - w of the image with w ~ Beta(alpha, alpha), its centre anywhere; it is cut at the borders.
    """
    draws = uniforms(seed, Purpose.CUTMIX, stream_index, 3)
    half = 0.5 * np.sqrt(1.0 - _betas(draws[:, 0], alpha))
    y, x = draws[:, 1], draws[:, 2]
    height, width = shape
    sides = np.stack([y - half, y + half, x - half, x + half], axis=1) * [height, height, width, width]
    return torch.from_numpy(np.rint(np.clip(sides, 0.0, [height, height, width, width])).astype(np.int64))


def _betas(draws: np.ndarray, alpha: float) -> np.ndarray:
    """Turn uniform numbers into Beta(alpha, alpha) ones, by its inverse distribution function."""
    return np.asarray(betaincinv(alpha, alpha, draws))


def _blend(values: Tensor, partners: Tensor, own: Tensor) -> Tensor:
    return torch.lerp(partners, values, own.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1)))

"""Segmentation of images that are larger than the model's input: overlapping tiles, whose logits are blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from datasets.transforms.decode import resize

_AT_ONCE = 8
"""Tiles in a pass."""


def tiled_classes(
    run: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, *, size: int, tile: int, overlap: float
) -> np.ndarray:
    """Return each pixel's class, uint8 [H, W], of an image, uint8 [H, W, 3].

    Logits of overlapping tiles are summed with weights that fall linearly towards a tile's edges, so no seam shows.
    Beside the image and its classes, no more is held than the logits of one row of tiles: K x tile x W.

    Args:
        run: from uint8 [B, 3, size, size] to logits, float32 [B, K, size, size].
        pixels: of the image; one smaller than a tile is continued by its border pixels.
        size: side of the model's input in pixels.
        tile: side of a tile in the image's pixels; it is resized to `size`.
        overlap: share of a tile's side that it has in common with the next one, at least.
    """
    height, width = pixels.shape[:2]
    padding = [(0, max(0, tile - side)) for side in (height, width)]
    pixels = np.pad(pixels, [*padding, (0, 0)], mode="edge")
    step = max(1, round(tile * (1 - overlap)))
    tops, lefts = (_starts(side, tile, step) for side in pixels.shape[:2])
    ramp = np.minimum(np.arange(tile) + 0.5, np.arange(tile, 0, -1) - 0.5).astype(np.float32)
    weights = torch.from_numpy(np.outer(ramp, ramp) / (tile / 2) ** 2)
    classes = np.empty(pixels.shape[:2], dtype=np.uint8)
    band: torch.Tensor | None = None
    for top, following in zip(tops, [*tops[1:], pixels.shape[0]], strict=True):
        for left, logits in _row(run, pixels[top : top + tile], lefts, size, tile):
            if band is None:
                band = torch.zeros(len(logits), tile, pixels.shape[1])
            band[:, :, left : left + tile] += logits * weights
        assert band is not None
        done = following - top  # no later tile reaches these rows
        classes[top:following] = band[:, :done].argmax(0).to(torch.uint8).numpy()
        band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], 1)
    return classes[:height, :width]


def _starts(length: int, tile: int, step: int) -> list[int]:
    """Return where tiles begin that cover a length; the last one ends at its end."""
    return [*range(0, length - tile, step), length - tile]


def _row(
    run: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, lefts: list[int], size: int, tile: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (left, logits float32 [K, tile, tile]) of the tiles in `rows`, uint8 [tile, W, 3]."""
    for first in range(0, len(lefts), _AT_ONCE):
        some = lefts[first : first + _AT_ONCE]
        tiles = [resize(np.ascontiguousarray(rows[:, left : left + tile]), size) for left in some]
        logits = torch.from_numpy(run(np.ascontiguousarray(np.stack(tiles).transpose(0, 3, 1, 2))))
        if tile != size:
            logits = F.interpolate(logits, (tile, tile), mode="bilinear", align_corners=False)
        yield from zip(some, logits, strict=True)

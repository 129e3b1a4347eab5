"""Segmentation of images that are larger than the model's input: overlapping tiles, whose logits are blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from datasets.transforms.decode import resize
from datasets.transforms.shape import Shape

_AT_ONCE = 8
"""Tiles in a pass."""


def tiled_classes(
    run: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, *, shape: Shape, tile: Shape, overlap: float
) -> np.ndarray:
    """Return each pixel's class, uint8 [H, W], of an image, uint8 [H, W, 3].

    Logits of overlapping tiles are summed with weights that fall linearly towards a tile's edges, so no seam shows.
    Beside the image and its classes, no more is held than the logits of one row of tiles: K x its height x W.

    Args:
        run: from uint8 [B, 3, h, w] to logits, float32 [B, K, h, w].
        pixels: of the image; one smaller than a tile is continued by its border pixels.
        shape: height h and width w of the model's input, in pixels.
        tile: height and width of a tile in the image's pixels; it is resized to `shape`.
        overlap: share of a tile's side that it has in common with the next one, at least.
    """
    height, width = pixels.shape[:2]
    padding = [(0, max(0, part - side)) for part, side in zip(tile, (height, width), strict=True)]
    pixels = np.pad(pixels, [*padding, (0, 0)], mode="edge")
    tops, lefts = (_starts(side, part, overlap) for side, part in zip(pixels.shape[:2], tile, strict=True))
    rows, columns = tile
    weights = torch.from_numpy(np.outer(_ramp(rows), _ramp(columns)) / (rows / 2 * (columns / 2)))
    classes = np.empty(pixels.shape[:2], dtype=np.uint8)
    band: torch.Tensor | None = None
    for top, following in zip(tops, [*tops[1:], pixels.shape[0]], strict=True):
        for left, logits in _row(run, pixels[top : top + rows], lefts, shape, tile):
            if band is None:
                band = torch.zeros(len(logits), rows, pixels.shape[1])
            band[:, :, left : left + columns] += logits * weights
        assert band is not None
        done = following - top  # no later tile reaches these rows
        classes[top:following] = band[:, :done].argmax(0).to(torch.uint8).numpy()
        band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], 1)
    return classes[:height, :width]


def _starts(length: int, part: int, overlap: float) -> list[int]:
    """Return where tiles' sides of this length begin that cover a whole one; the last one ends at its end."""
    return [*range(0, length - part, max(1, round(part * (1 - overlap)))), length - part]


def _ramp(length: int) -> np.ndarray:
    """Return weights, float32 [length], that fall from the middle towards both ends."""
    return np.minimum(np.arange(length) + 0.5, np.arange(length, 0, -1) - 0.5).astype(np.float32)


def _row(
    run: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, lefts: list[int], shape: Shape, tile: Shape
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (left, logits float32 [K, *tile]) of the tiles in `rows`, uint8 [height of a tile, W, 3]."""
    for first in range(0, len(lefts), _AT_ONCE):
        some = lefts[first : first + _AT_ONCE]
        tiles = [resize(np.ascontiguousarray(rows[:, left : left + tile[1]]), shape) for left in some]
        logits = torch.from_numpy(run(np.ascontiguousarray(np.stack(tiles).transpose(0, 3, 1, 2))))
        if tile != shape:
            logits = F.interpolate(logits, tile, mode="bilinear", align_corners=False)
        yield from zip(some, logits, strict=True)

"""Affine moves of images of any channels and values, [H, W, C], and of their masks, [H, W], by nearest neighbour."""

from __future__ import annotations

import math

import numpy as np

from datasets.transforms.formats import IGNORED

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): what is shown at (x, y), from the centre, comes from (a x + b y + c, d x + e y + f)"""


def shear_x(slope: float) -> Matrix:
    """Push each row sideways, by `slope` times its distance from the middle."""
    return 1.0, slope, 0.0, 0.0, 1.0, 0.0


def shear_y(slope: float) -> Matrix:
    """Push each column down, by `slope` times its distance from the middle."""
    return 1.0, 0.0, 0.0, slope, 1.0, 0.0


def rotate(degrees: float) -> Matrix:
    """Turn about the centre."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return cosine, -sine, 0.0, sine, cosine, 0.0


def translate(right: int, down: int) -> Matrix:
    """Shift by whole pixels."""
    return 1.0, 0.0, float(-right), 0.0, 1.0, float(-down)


def moved(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Return an image or a mask moved; what comes in from outside is each channel's mean, or `IGNORED`."""
    height, width = pixels.shape[:2]
    x, y = np.arange(width) + 0.5 - width / 2, (np.arange(height) + 0.5 - height / 2)[:, None]
    a, b, c, d, e, f = matrix
    columns = np.floor(a * x + b * y + c + width / 2).astype(np.int64)
    rows = np.floor(d * x + e * y + f + height / 2).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    out = pixels[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    out[~inside] = IGNORED if pixels.ndim == 2 else pixels.mean(axis=(0, 1), dtype=np.float64)
    return out

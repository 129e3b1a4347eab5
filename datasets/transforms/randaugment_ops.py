"""RandAugment's operations on uint8 arrays, equal to torchvision's at the same strength.

The values are those of Pillow's C code, which torchvision calls, within rounding; whole-array arithmetic in float32 and
uint16 is several times faster than Pillow's objects and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

# Where extrapolation would leave nothing to learn from, it stops: at a nearly black, grey or flat image, at a quarter
# of the image, at one bit.
_LOWEST_FACTOR = 0.1
_LARGEST_SHIFT = 0.75
_FEWEST_BITS = 1
_FILL = 128
MASK_IGNORE = 255
"""A mask's value where there is nothing to learn."""
_LUMA = np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
_AT_ONCE = 4

Operation = Callable[[np.ndarray, float, float], np.ndarray]
"""uint8 [H, W, 3], strength (magnitude / 10), sign (-1 or 1) -> uint8 [H, W, 3]; the argument stays as it is"""


def _factor(strength: float, sign: float) -> float:
    return max(_LOWEST_FACTOR, 1.0 + 0.9 * strength * sign)


def _blended(values: np.ndarray, factor: float) -> np.ndarray:
    """Turn blends of two images into uint8, without fractions, as Pillow does; only a factor above 1 leaves it."""
    if factor > 1:
        np.clip(values, 0.0, 255.0, out=values)
    return values.astype(np.uint8)


def _fill(pixels: np.ndarray) -> int:
    """Return what comes in from outside of an image [H, W, 3], or of a mask [H, W]."""
    return _FILL if pixels.ndim == 3 else MASK_IGNORE


def brightness(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with black: beyond 1, a factor extrapolates, here and below."""
    factor = _factor(strength, sign)
    return _blended(np.multiply(pixels, np.float32(factor)), factor)


def color(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with the grey image: one 3x3 matrix for every pixel."""
    factor = _factor(strength, sign)
    matrix = np.eye(3, dtype=np.float32) * np.float32(factor) + _LUMA * np.float32(1.0 - factor)
    if pixels.size % (3 * _AT_ONCE) == 0:  # several pixels in one row keep the matrix product busy
        matrix = np.kron(np.eye(_AT_ONCE, dtype=np.float32), matrix)
    return _blended(pixels.astype(np.float32).reshape(-1, len(matrix)) @ matrix, factor).reshape(pixels.shape)


def contrast(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with the image's mean grey."""
    values = pixels.astype(np.float32)
    columns = values.reshape(len(pixels), -1).sum(axis=0)  # exact: sums of whole numbers below 2^24
    means = columns.reshape(-1, 3).mean(axis=0, dtype=np.float64) / len(pixels)
    grey = np.float32(int(float(means @ _LUMA[:, 0]) + 0.5))
    factor = _factor(strength, sign)
    values *= np.float32(factor)
    values += np.float32(1.0 - factor) * grey
    return _blended(values, factor)


def sharpness(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with the smoothed image: 3x3 mean in which the centre counts five times; the border stays."""
    height, width, _ = pixels.shape
    if height < 3 or width < 3:
        return pixels
    rows = pixels.reshape(height, -1)
    wide = rows.astype(np.uint16)
    lines = wide[:-2] + wide[1:-1]
    lines += wide[2:]
    nine = lines[:, :-6] + lines[:, 3:-3]
    nine += lines[:, 6:]
    factor = _factor(strength, sign)
    share = (1.0 - factor) / 13  # of the smoothed image, in which the nine count 1 / 13 and the centre 4 / 13 more
    values = np.multiply(nine, np.float32(share))
    values += np.multiply(rows[1:-1, 3:-3], np.float32(factor + 4 * share))
    out = pixels.copy()
    out.reshape(height, -1)[1:-1, 3:-3] = _blended(values, factor)
    return out


def posterize(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Keep the upper bits only."""
    bits = max(_FEWEST_BITS, 8 - round(4 * strength))
    return pixels & np.uint8(256 - (1 << (8 - bits)))


def solarize(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Invert what is at or above a threshold."""
    threshold = math.ceil(max(0.0, 255.0 * (1.0 - strength)))
    return pixels ^ ((pixels >= np.uint8(threshold)).view(np.uint8) * np.uint8(255))


def autocontrast(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Stretch each channel to the full range."""
    rows, width = pixels.reshape(len(pixels), -1), pixels.shape[1]
    low, high = (found.reshape(-1, 3) for found in (rows.min(axis=0), rows.max(axis=0)))
    low, high = low.min(axis=0), high.max(axis=0)
    flat = high <= low
    low[flat] = 0
    scale = np.where(flat, 1.0, 255.0 / np.maximum(high - low, 1)).astype(np.float32)
    values = np.multiply(rows - np.tile(low, width), np.tile(scale, width))
    values += np.float32(1e-3)  # whole results must not fall below themselves by rounding, as fractions are dropped
    return values.astype(np.uint8).reshape(pixels.shape)


_CHANNELS = np.array([0, 256, 512], dtype=np.uint16)


def equalize(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Spread each channel's values evenly over the full range."""
    counts = np.array(Image.fromarray(pixels).histogram(), dtype=np.int64).reshape(3, 256)
    tables = np.concatenate([_equal_table(row) for row in counts])
    places = pixels.reshape(len(pixels), -1) + np.tile(_CHANNELS, pixels.shape[1])
    return np.take(tables, places).reshape(pixels.shape)


def _equal_table(counts: np.ndarray) -> np.ndarray:
    used = counts[counts > 0]
    step = int(counts.sum() - used[-1]) // 255
    if len(used) <= 1 or step == 0:
        return np.arange(256, dtype=np.uint8)
    return np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255).astype(np.uint8)


def _affine(pixels: np.ndarray, matrix: tuple[float, float, float, float, float, float]) -> np.ndarray:
    """Return what lies at x' = a x + b y + c, y' = d x + e y + f of each pixel, by nearest neighbour."""
    image, fill = Image.fromarray(pixels), (_fill(pixels),) * (3 if pixels.ndim == 3 else 1)
    return np.asarray(
        image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)
    )


def shear_x(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Push each row sideways, the more the lower it lies."""
    height, width = pixels.shape[:2]
    slope = 0.3 * strength * sign
    # Whole pixels by row, in the fixed point of Pillow's affine transform: at pixel centres, rounded to 1 / 65536.
    first, step = math.floor((1.0 + slope) * 32768 + 0.5), math.floor(slope * 65536 + 0.5)
    shifts = np.clip((first + step * np.arange(height)) >> 16, -width, width)
    # Each row of the result is a window of a row with filling on both sides.
    margin, depth = int(np.abs(shifts).max()), pixels.size // (height * width)
    padded = np.full((height, (width + 2 * margin) * depth), _fill(pixels), dtype=np.uint8)
    padded[:, margin * depth : (margin + width) * depth] = pixels.reshape(height, -1)
    windows = np.lib.stride_tricks.as_strided(
        padded, (height, 2 * margin + 1, width * depth), (padded.strides[0], depth, 1), writeable=False
    )
    return windows[np.arange(height), shifts + margin].reshape(pixels.shape)


def shear_y(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Push each column down, the more the farther right it lies."""
    return _affine(pixels, (1.0, 0.0, 0.0, 0.3 * strength * sign, 1.0, 0.0))


def rotate(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Turn about the centre, by up to 30 degrees at full range."""
    image, fill = Image.fromarray(pixels), (_fill(pixels),) * (3 if pixels.ndim == 3 else 1)
    return np.asarray(image.rotate(30.0 * strength * sign, Image.Resampling.NEAREST, fillcolor=fill))


def translate_x(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Shift sideways by whole pixels."""
    out = np.full_like(pixels, _fill(pixels))
    width = pixels.shape[1]
    shift = _shift(width, strength, sign)
    out[:, max(shift, 0) : width + min(shift, 0)] = pixels[:, max(-shift, 0) : width - max(shift, 0)]
    return out


def translate_y(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Shift up or down by whole pixels."""
    out = np.full_like(pixels, _fill(pixels))
    height = pixels.shape[0]
    shift = _shift(height, strength, sign)
    out[max(shift, 0) : height + min(shift, 0)] = pixels[max(-shift, 0) : height - max(shift, 0)]
    return out


def _shift(side: int, strength: float, sign: float) -> int:
    return int(min(150.0 / 331.0 * strength, _LARGEST_SHIFT) * side * sign)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda pixels, strength, sign: pixels,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
"""RandAugment's operations by name, with the ranges that torchvision gives them."""

GEOMETRIC = frozenset({"shear_x", "shear_y", "translate_x", "translate_y", "rotate"})
"""The operations that move pixels, of an image or of a mask [H, W]; the others change an image's values only."""

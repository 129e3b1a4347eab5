"""RandAugment's operations on uint8 arrays, each the one that torchvision has, at the same strength.

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
_FILL = (128, 128, 128)
MASK_IGNORE = 255
"""A mask's value where there is nothing to learn."""
_LUMA = np.array([[0.299], [0.587], [0.114]], dtype=np.float32)

Operation = Callable[[np.ndarray, float, float], np.ndarray]
"""uint8 [H, W, 3], strength (magnitude / 10), sign (-1 or 1) -> uint8 [H, W, 3]; the argument stays as it is"""


def _factor(strength: float, sign: float) -> float:
    return max(_LOWEST_FACTOR, 1.0 + 0.9 * strength * sign)


def _clipped(values: np.ndarray) -> np.ndarray:
    """Cut float values to [0, 255], in place, and drop their fractions, as Pillow does."""
    np.clip(values, 0.0, 255.0, out=values)
    return values.astype(np.uint8)


def brightness(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with black: beyond 1, a factor extrapolates, here and below."""
    values = pixels.astype(np.float32)
    values *= np.float32(_factor(strength, sign))
    return _clipped(values)


def color(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with the grey image: one 3x3 matrix for every pixel."""
    factor = _factor(strength, sign)
    matrix = np.eye(3, dtype=np.float32) * np.float32(factor) + _LUMA * np.float32(1.0 - factor)
    return _clipped(pixels.astype(np.float32).reshape(-1, 3) @ matrix).reshape(pixels.shape)


def contrast(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with the image's mean grey."""
    values = pixels.astype(np.float32)
    columns = values.reshape(len(pixels), -1).sum(axis=0)  # exact: sums of whole numbers below 2^24
    means = columns.reshape(-1, 3).mean(axis=0, dtype=np.float64) / len(pixels)
    grey = np.float32(int(float(means @ _LUMA[:, 0]) + 0.5))
    factor = _factor(strength, sign)
    values *= np.float32(factor)
    values += np.float32(1.0 - factor) * grey
    return _clipped(values)


def sharpness(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Blend with the smoothed image: 3x3 mean in which the centre counts five times; the border stays."""
    height, width, _ = pixels.shape
    if height < 3 or width < 3:
        return pixels
    rows = pixels.reshape(height, -1).astype(np.uint16)
    lines = rows[:-2] + rows[1:-1] + rows[2:]
    smooth = lines[:, :-6] + lines[:, 3:-3] + lines[:, 6:]
    smooth += rows[1:-1, 3:-3] << 2
    smooth *= 2
    smooth += 13
    smooth //= 26  # sum / 13, rounded
    factor = np.float32(_factor(strength, sign))
    values = smooth.astype(np.float32)
    values *= np.float32(1.0) - factor
    values += factor * rows[1:-1, 3:-3]
    out = pixels.copy()
    out.reshape(height, -1)[1:-1, 3:-3] = _clipped(values)
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
    rows = pixels.reshape(len(pixels), -1)
    low = rows.min(axis=0).reshape(-1, 3).min(axis=0).astype(np.float64)
    high = rows.max(axis=0).reshape(-1, 3).max(axis=0).astype(np.float64)
    flat = high <= low
    scale = np.where(flat, 1.0, 255.0 / np.maximum(high - low, 1.0))
    # Whole results must not fall below themselves by rounding, as fractions are dropped.
    offset = np.where(flat, 0.0, -low * scale) + 1e-3
    values = rows.astype(np.float32)
    values *= np.tile(scale.astype(np.float32), pixels.shape[1])
    values += np.tile(offset.astype(np.float32), pixels.shape[1])
    return _clipped(values).reshape(pixels.shape)


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
    fill = _FILL if pixels.ndim == 3 else MASK_IGNORE
    image = Image.fromarray(pixels)
    return np.asarray(
        image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)
    )


def shear_x(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Push each row sideways, the more the lower it lies."""
    return _affine(pixels, (1.0, 0.3 * strength * sign, 0.0, 0.0, 1.0, 0.0))


def shear_y(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Push each column down, the more the farther right it lies."""
    return _affine(pixels, (1.0, 0.0, 0.0, 0.3 * strength * sign, 1.0, 0.0))


def rotate(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Turn about the centre, by up to 30 degrees at full range."""
    image = Image.fromarray(pixels)
    fill = _FILL if pixels.ndim == 3 else MASK_IGNORE
    return np.asarray(image.rotate(30.0 * strength * sign, Image.Resampling.NEAREST, fillcolor=fill))


def translate_x(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Shift sideways by whole pixels."""
    out = np.full_like(pixels, _FILL[0] if pixels.ndim == 3 else MASK_IGNORE)
    width = pixels.shape[1]
    shift = _shift(width, strength, sign)
    out[:, max(shift, 0) : width + min(shift, 0)] = pixels[:, max(-shift, 0) : width - max(shift, 0)]
    return out


def translate_y(pixels: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Shift up or down by whole pixels."""
    out = np.full_like(pixels, _FILL[0] if pixels.ndim == 3 else MASK_IGNORE)
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

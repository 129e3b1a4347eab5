"""RandAugment's operations on uint8 arrays, by their physical amounts: factors, pixels, degrees, bits.

Which amounts go with which magnitude is the policy's (`randaugment_policies`). The values are those of Pillow's C code
and of TensorFlow's, which the policies' references call, within rounding; whole-array arithmetic in float32 and uint16
is several times faster than Pillow's objects and tables.

Nothing here is a matrix product: BLAS would round in the order of the kernel that it has for the processor, so that the
same sample had other pixels elsewhere, and wake its threads in every loader process.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from datasets.transforms.formats import IGNORED

_FILL = 128
_LUMA = (0.299, 0.587, 0.114)
_SOLARIZED_BELOW = 128


def _blended(values: np.ndarray, factor: float) -> np.ndarray:
    """Turn blends of two images into uint8, without fractions, as Pillow does; only a factor above 1 leaves it."""
    if factor > 1:
        np.clip(values, 0.0, 255.0, out=values)
    return values.astype(np.uint8)


def _fill(pixels: np.ndarray) -> int:
    """Return what comes in from outside of an image [H, W, 3], or of a mask [H, W]."""
    return _FILL if pixels.ndim == 3 else IGNORED


# Values --------------------------------------------------------------------------------------------------------------


def brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: beyond 1, a factor extrapolates, here and below."""
    return _blended(np.multiply(pixels, np.float32(factor)), factor)


def color(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image, by Pillow's own code: it has one pass for each of the two."""
    image = Image.fromarray(pixels)
    return np.asarray(Image.blend(image.convert("L").convert("RGB"), image, factor))


def blend(other: np.ndarray, pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend with another image of whole numbers, float32, in TensorFlow's order of arithmetic."""
    return _blended(other + np.float32(factor) * (pixels - other), factor)


def whole_grey(pixels: np.ndarray) -> np.ndarray:
    """Return the grey image, float32 [H, W, 1] of whole numbers, as TensorFlow makes it.

    It is floor((0.2989 r + 0.587 g + 0.114 b) / 255 * 255.5), here in whole numbers.
    """
    red, green, blue = (pixels[..., channel] * np.uint32(share) for channel, share in enumerate((2989, 5870, 1140)))
    return ((red + green + blue) * np.uint32(511) // np.uint32(510 * 10000)).astype(np.float32)[..., None]


def mean_grey(pixels: np.ndarray) -> int:
    """Return the mean of the grey image, rounded."""
    values = pixels.astype(np.float32)
    columns = values.reshape(len(pixels), -1).sum(axis=0)  # exact: sums of whole numbers below 2^24
    means = columns.reshape(-1, 3).mean(axis=0, dtype=np.float64) / len(pixels)
    return int(sum(share * mean for share, mean in zip(_LUMA, means.tolist(), strict=True)) + 0.5)


def contrast(pixels: np.ndarray, factor: float, grey: int) -> np.ndarray:
    """Blend with one grey."""
    values = pixels.astype(np.float32)
    values *= np.float32(factor)
    values += np.float32(1.0 - factor) * np.float32(grey)
    return _blended(values, factor)


def _nine(rows: np.ndarray) -> np.ndarray:
    """Return the sums of 3x3 neighbours of each channel, uint16 [H - 2, 3 W - 6], of uint8 [H, 3 W]."""
    wide = rows.astype(np.uint16)
    lines = wide[:-2] + wide[1:-1]
    lines += wide[2:]
    nine = lines[:, :-6] + lines[:, 3:-3]
    nine += lines[:, 6:]
    return np.asarray(nine)


def sharpness(pixels: np.ndarray, factor: float, *, whole: bool = False) -> np.ndarray:
    """Blend with the smoothed image: 3x3 mean in which the centre counts five times; the border stays.

    With `whole` the smoothed image loses its fractions before it is blended, as in TensorFlow.
    """
    height, width, _ = pixels.shape
    if height < 3 or width < 3:
        return pixels
    rows = pixels.reshape(height, -1)
    nine, centre = _nine(rows), rows[1:-1, 3:-3]
    if whole:
        smooth = (nine + np.uint16(4) * centre) // np.uint16(13)
        inner = blend(smooth.astype(np.float32), centre, factor)
    else:
        share = (1.0 - factor) / 13  # of the smoothed image: the nine count 1 / 13 and the centre 4 / 13 more
        values = np.multiply(nine, np.float32(share))
        values += np.multiply(centre, np.float32(factor + 4 * share))
        inner = _blended(values, factor)
    out = pixels.copy()
    out.reshape(height, -1)[1:-1, 3:-3] = inner
    return out


def posterize(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Keep the upper bits only."""
    return pixels & np.uint8(256 - (1 << (8 - bits)))


def solarize(pixels: np.ndarray, threshold: int) -> np.ndarray:
    """Invert what is at or above a threshold; above 255: nothing."""
    if threshold > 255:
        return pixels
    return pixels ^ ((pixels >= np.uint8(threshold)).view(np.uint8) * np.uint8(255))


def solarize_add(pixels: np.ndarray, addition: int) -> np.ndarray:
    """Brighten what is below 128."""
    table = np.arange(256)
    table[:_SOLARIZED_BELOW] += addition
    return np.take(table.clip(0, 255).astype(np.uint8), pixels)


def invert(pixels: np.ndarray) -> np.ndarray:
    """Return the negative."""
    return ~pixels


def autocontrast(pixels: np.ndarray) -> np.ndarray:
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


def equalize(pixels: np.ndarray) -> np.ndarray:
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


# Places: of an image [H, W, 3] or of its mask [H, W], by nearest neighbour -------------------------------------------


def shear_x(pixels: np.ndarray, slope: float, *, first_row: float = 0.5) -> np.ndarray:
    """Push each row sideways, by `slope` times its height: that of the first row is `first_row`, in pixels."""
    height, width = pixels.shape[:2]
    # Whole pixels by row, in the fixed point of Pillow's affine transform: rounded to 1 / 65536.
    first, step = math.floor((0.5 + slope * first_row) * 65536 + 0.5), math.floor(slope * 65536 + 0.5)
    shifts = np.clip((first + step * np.arange(height)) >> 16, -width, width)
    # Each row of the result is a window of a row with filling on both sides.
    margin, depth = int(np.abs(shifts).max()), pixels.size // (height * width)
    padded = np.full((height, (width + 2 * margin) * depth), _fill(pixels), dtype=np.uint8)
    padded[:, margin * depth : (margin + width) * depth] = pixels.reshape(height, -1)
    windows = np.lib.stride_tricks.as_strided(
        padded, (height, 2 * margin + 1, width * depth), (padded.strides[0], depth, 1), writeable=False
    )
    return windows[np.arange(height), shifts + margin].reshape(pixels.shape)


def shear_y(pixels: np.ndarray, slope: float, *, first_column: float = 0.5) -> np.ndarray:
    """Push each column down, by `slope` times its distance from the left: that of the first is `first_column`."""
    image, fill = Image.fromarray(pixels), (_fill(pixels),) * (3 if pixels.ndim == 3 else 1)
    matrix = (1.0, 0.0, 0.0, slope, 1.0, slope * (first_column - 0.5))  # Pillow's first column is at 0.5
    return np.asarray(
        image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)
    )


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turn about the centre."""
    image, fill = Image.fromarray(pixels), (_fill(pixels),) * (3 if pixels.ndim == 3 else 1)
    return np.asarray(image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=fill))


def translate_x(pixels: np.ndarray, shift: int) -> np.ndarray:
    """Shift to the right by whole pixels."""
    out = np.full_like(pixels, _fill(pixels))
    width = pixels.shape[1]
    if abs(shift) < width:
        out[:, max(shift, 0) : width + min(shift, 0)] = pixels[:, max(-shift, 0) : width - max(shift, 0)]
    return out


def translate_y(pixels: np.ndarray, shift: int) -> np.ndarray:
    """Shift down by whole pixels."""
    out = np.full_like(pixels, _fill(pixels))
    height = pixels.shape[0]
    if abs(shift) < height:
        out[max(shift, 0) : height + min(shift, 0)] = pixels[max(-shift, 0) : height - max(shift, 0)]
    return out


def cutout(pixels: np.ndarray, half: int, y: float, x: float) -> np.ndarray:
    """Blank a square of 2 `half` pixels around a place, given in [0, 1); it is cut off at the borders."""
    out = pixels.copy()
    row, column = int(y * pixels.shape[0]), int(x * pixels.shape[1])
    out[max(0, row - half) : row + half, max(0, column - half) : column + half] = _fill(pixels)
    return out

"""Image bytes -> crop at the stage's size: uint8 RGB, or float32 of any channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch

from datasets.transforms.bands import band_header, decode_bands
from datasets.transforms.formats import RGB, PixelFormat
from datasets.transforms.pixels import (
    EXTRA_BYTES,
    MAX_PIXELS,
    Header,
    decode_jpeg,
    decode_rgb,
    is_transposed,
    opened,
    read_header,
    stored_pixels,
    upright,
)
from datasets.transforms.shape import Shape

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels of the whole image"""

CROP_DRAWS = 40
"""Random numbers that one crop takes: four for each of ten attempts."""
_interpolate = torch.ops.aten._upsample_bilinear2d_aa.out
# Baseline and extended sequential JPEGs have one pass over the rows. Other frames, and the end of the headers.
_BASELINE_FRAMES = frozenset({0xC0, 0xC1})
_OTHER_FRAMES = frozenset({*range(0xC2, 0xD0), 0xD9, 0xDA}) - {0xC4, 0xC8, 0xCC}
_MOST_ROWS = 1 << 16
_ROWS_AROUND = 2  # the colours of a row are interpolated from its neighbours
_EVAL_PADDING = 32
_EVAL_CROP_BELOW = 320


def random_crop(
    header: Header, draws: Sequence[float], *, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Return a crop of a random share of the area and of random aspect ratio (width / height), as in Inception.

    Where no attempt fits the image, the largest central crop within `ratio` is taken. All of the area is the whole
    image, whatever its shape.

    Args:
        header: of the image.
        draws: `CROP_DRAWS` numbers in [0, 1): four for each attempt.
        area: smallest and largest share of the area.
        ratio: smallest and largest width / height.
    """
    height, width = header.height, header.width
    if area[0] == 1:
        return 0, 0, height, width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for first in range(0, CROP_DRAWS, 4):
        size = height * width * (area[0] + draws[first] * (area[1] - area[0]))
        shape = math.exp(low + draws[first + 1] * (high - low))
        w, h = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[first + 2] * (height - h + 1)), int(draws[first + 3] * (width - w + 1)), h, w
    return _largest_crop(height, width, ratio)


def _largest_crop(height: int, width: int, ratio: tuple[float, float]) -> Box:
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def eval_crop(header: Header, shape: Shape, *, rule: str) -> Box:
    """Return the part of the image that evaluation looks at, to be resized to `shape`.

    `central` is size / (size + 32) of the largest central part of the shape's aspect ratio (of a square's: of the short
    side), where size is the shape's short side; `whole` is the whole image (squeezed into the shape later);
    `central_below_320` is the first below 320 px and the second from there on, as EfficientNetV2's authors evaluate.
    """
    height, width = header.height, header.width
    size, (rows, columns) = min(shape), shape
    if takes_whole(size, rule):
        return 0, 0, height, width
    share = size / (size + _EVAL_PADDING)
    h = max(1, int(share * min(height, width * rows / columns)))
    w = max(1, int(share * min(width, height * columns / rows)))
    return (height - h) // 2, (width - w) // 2, h, w


def takes_whole(size: int, rule: str) -> bool:
    """Say whether evaluation at a size (the short side) looks at the whole image."""
    return rule == "whole" or (rule == "central_below_320" and size >= _EVAL_CROP_BELOW)


def image_header(data: bytes, pixels: PixelFormat = RGB, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read size and kind of an image that will be decoded as `pixels`.

    Raises:
        ValueError: no image that can be read so, or one of more than `max_pixels`.
    """
    return (read_header(data, max_pixels=max_pixels) if pixels.is_rgb
            else band_header(data, pixels, max_pixels=max_pixels))  # fmt: skip


def decode_whole(data: bytes, pixels: PixelFormat = RGB, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a whole image: uint8 [H, W, 3], or values as they are stored as float32 [H, W, C].

    Raises:
        ValueError: damaged, larger than `max_pixels`, or of other values than `pixels`.
    """
    if pixels.is_rgb:
        return decode_rgb(data, max_pixels=max_pixels)
    band_header(data, pixels, max_pixels=max_pixels)
    return decode_bands(data, max_pixels=max_pixels).astype(np.float32)


class Crop(NamedTuple):
    """What was cut out of an image, in the resolution of its decoding."""

    pixels: np.ndarray
    """uint8 [H, W, 3], or float32 [H, W, C], contiguous, as they are stored"""
    orientation: int = 1
    """EXIF's: how they must be turned or mirrored to be shown"""

    def resized(self, shape: Shape) -> np.ndarray:
        """Return the crop as it is shown, resized to this shape."""
        stored = shape[::-1] if is_transposed(self.orientation) else shape
        return np.ascontiguousarray(upright(resize(self.pixels, stored), self.orientation))


def decode_crop(data: bytes, header: Header, box: Box, shape: Shape, pixels: PixelFormat = RGB) -> np.ndarray:
    """Decode an image, cut out `box` and resize it to uint8 [H, W, 3] of this shape.

    The pixels are those of `decode_rgb`; only a JPEG whose crop stays at least twice the target is decoded at a smaller
    scale. Of other `pixels` than RGB the values are those of `decode_bands`, as float32 [H, W, C].

    Raises:
        ValueError: the data is corrupt.
    """
    return cut_out(data, header, box, shape, pixels).resized(shape)


def cut_out(data: bytes, header: Header, box: Box, shape: Shape, pixels: PixelFormat = RGB) -> Crop:
    """Decode an image and cut out `box`: all of `decode_crop` but the resizing, to the same shape later.

    Raises:
        ValueError: the data is corrupt.
    """
    if not pixels.is_rgb:
        top, left, height, width = box
        values = decode_bands(data, max_pixels=header.height * header.width * pixels.channels)
        return Crop(values[top : top + height, left : left + width].astype(np.float32, order="C"))
    stored, box = _stored(header, box)
    target = shape[::-1] if header.is_transposed else shape
    found = _decode_jpeg(data, stored, box, target) if header.is_plain_jpeg else stored_pixels(data, header)
    top, left, height, width = _scaled_box(box, stored, found.shape[0], found.shape[1])
    return Crop(np.ascontiguousarray(found[top : top + height, left : left + width]), header.orientation)


def decode_mask(data: bytes, header: Header, box: Box, shape: Shape) -> np.ndarray:
    """Decode a mask (one value a pixel: grey or palette PNG), cut out `box` and resize it to uint8 [H, W].

    Nearest neighbour: a mask's values are classes and have no mean. It is stored as its image is shown.

    Raises:
        ValueError: damaged, more than one channel, or of another size than its image.
    """
    image = opened(data)
    if image.mode not in ("L", "P", "1"):
        raise ValueError(f"the mask is of mode {image.mode}; it must be grey or palette, 8 bits a pixel")
    if image.size != (header.width, header.height):
        raise ValueError(f"the mask has {image.width}x{image.height} pixels, its image {header.width}x{header.height}")
    mask = np.array(opened(data, load=True), dtype=np.uint8)
    top, left, height, width = box
    return mask[top + nearest(height, shape[0])[:, None], left + nearest(width, shape[1])]


def nearest(source: int, target: int) -> np.ndarray:
    """Return for each of `target` pixels the one of `source` pixels, over the same length, in which its centre lies."""
    return (np.arange(target) * 2 + 1) * source // (2 * target)


def _stored(header: Header, box: Box) -> tuple[Header, Box]:
    """Return header and box in the pixels as they are stored, before they are turned or mirrored."""
    top, left, height, width = box
    rows, columns = header.height, header.width
    if header.orientation in (3, 4, 7, 8):  # what is shown last is stored first
        top = rows - top - height
    if header.orientation in (2, 3, 6, 7):
        left = columns - left - width
    if header.is_transposed:
        return replace(header, height=columns, width=rows), (left, top, width, height)
    return header, (top, left, height, width)


def _decode_jpeg(data: bytes, header: Header, box: Box, shape: Shape) -> np.ndarray:
    """Decode a JPEG down to the last row of the box; the rows below it may be missing in what is returned."""
    shrink = min(box[2] / (2 * shape[0]), box[3] / (2 * shape[1]))
    if shrink < 2:
        height_at, block_rows = _baseline_height(data)
        rows = -(-(box[0] + box[2] + _ROWS_AROUND) // block_rows) * block_rows
        return _decode_rows(data, header, rows, height_at) if rows < header.height else decode_jpeg(data)
    least_height, least_width = math.ceil(header.height / shrink), math.ceil(header.width / shrink)
    return decode_jpeg(data, min_height=least_height, min_width=least_width, min_factor=2)


def _decode_rows(data: bytes, header: Header, rows: int, height_at: int) -> np.ndarray:
    """Decode the first rows of a baseline JPEG: with their number written into its header, the decoder stops there.

    Nine tenths of a decode are the entropy coding, which can't be entered in the middle, but can be left.
    """
    pixels = np.empty((rows, header.width, 3), dtype=np.uint8)
    shortened = b"".join((data[:height_at], rows.to_bytes(2, "big"), data[height_at + 2 :]))
    try:
        simplejpeg.decode_jpeg(shortened, buffer=pixels)
    except ValueError as error:
        # The first complaint is reported: when it is of the rows that were left out, those before were sound.
        if EXTRA_BYTES not in str(error):
            raise
    return pixels


def _baseline_height(data: bytes) -> tuple[int, int]:
    """Return where a baseline JPEG's header has its height, two bytes, and the pixel rows that are coded together.

    A JPEG of another kind has all of its rows coded together, in effect.
    """
    place = 2
    while place + 4 < len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind in _BASELINE_FRAMES:
            components = data[place + 10 : place + 10 + 3 * data[place + 9]]
            return place + 5, 8 * max(sampling & 15 for sampling in components[1::3])
        if kind in _OTHER_FRAMES:
            break
        # 0xFF again is padding.
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0, _MOST_ROWS


def _scaled_box(box: Box, header: Header, height: int, width: int) -> Box:
    if width == header.width:  # not scaled, though rows below the box may be missing
        return box
    down, right = height / header.height, width / header.width
    top, left = int(box[0] * down), int(box[1] * right)
    return top, left, max(1, min(round(box[2] * down), height - top)), max(1, min(round(box[3] * right), width - left))


def resize(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    """Resize uint8 or float32 [H, W, C] to another height and width with antialiased bilinear interpolation."""
    if pixels.shape[:2] == shape:
        return pixels
    # `functional.interpolate` would return planes, which cost more to put back in order than the interpolation itself.
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    out = torch.empty((1, *shape, given.shape[1]), dtype=given.dtype)
    _interpolate(given, list(shape), False, None, None, out=out.permute(0, 3, 1, 2))
    return out[0].numpy()

"""Image bytes -> uint8 crop at the stage's size."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from PIL import Image

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels of the whole image"""

_CROP_ATTEMPTS = 10
# What simplejpeg turns into RGB; CMYK and YCCK go to Pillow.
_SIMPLEJPEG_SPACES = frozenset({"RGB", "YCbCr", "GRAY", "Gray"})
_EVAL_PADDING = 32
_EVAL_CROP_BELOW = 320


@dataclass(frozen=True, slots=True)
class Header:
    """What must be known of an image before it is decoded."""

    height: int
    """in pixels"""
    width: int
    """in pixels"""
    is_plain_jpeg: bool
    """simplejpeg can decode it"""


def read_header(data: bytes) -> Header:
    """Read size and kind of an image from its first bytes.

    Raises:
        ValueError: no image that can be read.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in _SIMPLEJPEG_SPACES:
                return Header(height, width, True)
        except ValueError:
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            return Header(image.height, image.width, False)
    except OSError as error:
        raise ValueError(f"not a readable image ({error})") from error


def random_crop(
    header: Header, generator: np.random.Generator, *, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draw a crop of a random share of the area and of random aspect ratio (width / height), as in Inception.

    Where no attempt fits the image, the largest central crop within `ratio` is taken. Takes a fixed number of draws.
    """
    height, width = header.height, header.width
    draws = generator.random((_CROP_ATTEMPTS, 4))
    areas = height * width * (area[0] + draws[:, 0] * (area[1] - area[0]))
    low, high = np.log(ratio)
    ratios = np.exp(low + draws[:, 1] * (high - low))
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if not fits.any():
        return _largest_crop(height, width, ratio)
    pick = int(fits.argmax())
    h, w = int(heights[pick]), int(widths[pick])
    return int(draws[pick, 2] * (height - h + 1)), int(draws[pick, 3] * (width - w + 1)), h, w


def _largest_crop(height: int, width: int, ratio: tuple[float, float]) -> Box:
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def eval_crop(header: Header, size: int, *, rule: str) -> Box:
    """Return the part of the image that evaluation looks at.

    `central` is the central square of size / (size + 32) of the short side; `whole` is the whole image (squeezed to a
    square later); `central_below_320` is the first below 320 px and the second from there on, as EfficientNetV2's
    authors evaluate.
    """
    height, width = header.height, header.width
    if rule == "whole" or (rule == "central_below_320" and size >= _EVAL_CROP_BELOW):
        return 0, 0, height, width
    side = max(1, int(size / (size + _EVAL_PADDING) * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


def decode_crop(data: bytes, header: Header, box: Box, size: int) -> np.ndarray:
    """Decode an image, cut out `box` and resize it to uint8 [size, size, 3].

    A JPEG is decoded at a smaller scale only when the crop stays at least twice the target there.

    Raises:
        ValueError: the data is damaged.
    """
    pixels = _decode_jpeg(data, header, box, size) if header.is_plain_jpeg else _decode_any(data)
    top, left, height, width = _scaled_box(box, header, pixels.shape[0], pixels.shape[1])
    return _resize(pixels[top : top + height, left : left + width], size)


def _decode_jpeg(data: bytes, header: Header, box: Box, size: int) -> np.ndarray:
    shrink = min(box[2], box[3]) / (2 * size)
    if shrink < 2:
        return simplejpeg.decode_jpeg(data)
    return simplejpeg.decode_jpeg(
        data,
        min_height=int(np.ceil(header.height / shrink)),
        min_width=int(np.ceil(header.width / shrink)),
        min_factor=2,
    )


def _decode_any(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"damaged image ({error})") from error


def _scaled_box(box: Box, header: Header, height: int, width: int) -> Box:
    if (height, width) == (header.height, header.width):
        return box
    down, right = height / header.height, width / header.width
    top, left = int(box[0] * down), int(box[1] * right)
    return top, left, max(1, min(round(box[2] * down), height - top)), max(1, min(round(box[3] * right), width - left))


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] with antialiased bilinear interpolation."""
    if pixels.shape[:2] == (size, size):
        return pixels
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    tensor = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)
    return tensor[0].permute(1, 2, 0).numpy()

"""Image files -> the bytes that go into a shard."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.transforms.bands import any_header
from datasets.transforms.formats import extension_for
from datasets.transforms.pixels import decode_rgb, read_header

JPEG_QUALITY = 95
COPY_QUALITY = 92
_PHOTOGRAPHS = frozenset({"JPEG", "MPO", "AVIF", "JPEG2000"})
"""Lossy containers, whose smaller copies are JPEGs."""


def file_bytes(path: Path) -> tuple[str, bytes]:
    """Return (extension, bytes) for one image file: its own bytes, since the loader reads every format.

    Raises:
        ValueError: no image that can be read.
    """
    return stored(path.read_bytes(), path.name)


def stored(data: bytes, name: str) -> tuple[str, bytes]:
    """Return (extension, bytes) for an image's own bytes; `name` is of the file that they are from.

    Raises:
        ValueError: no image that can be read.
    """
    return extension_for(any_header(data).container, name), data


def jpeg_bytes(image: Image.Image) -> bytes:
    """Encode as JPEG of quality 95 without colour subsampling; grey stays grey."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def shrunk(data: bytes, extension: str, short_side: int) -> tuple[str, bytes]:
    """Return (extension, bytes) of an image scaled down to a short side, or as it is where it is no larger.

    The copy is made of the pixels as they are shown, so it needs neither orientation nor transparency. WebP and PNG
    stay what they are; other lossy formats become JPEGs, other lossless ones PNGs.

    Raises:
        ValueError: damaged.
    """
    header = read_header(data)
    if min(header.height, header.width) <= short_side:
        return extension, data
    small = _scaled(_picture(decode_rgb(data)), short_side, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    if header.container in _PHOTOGRAPHS:
        small.save(stream, "JPEG", quality=COPY_QUALITY)
        return extension_for("JPEG", f".{extension}"), stream.getvalue()
    if header.container == "WEBP":
        small.save(stream, "WEBP", quality=COPY_QUALITY)
        return extension_for("WEBP", f".{extension}"), stream.getvalue()
    small.save(stream, "PNG")
    return extension_for("PNG", f".{extension}"), stream.getvalue()


def shrunk_mask(data: bytes, short_side: int) -> bytes:
    """Return a mask scaled down like its image: every pixel keeps the class of its centre.

    Raises:
        OSError: damaged.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as mask:
        if min(mask.size) <= short_side:
            return data
        small = _scaled(mask, short_side, Image.Resampling.NEAREST)
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return stream.getvalue()


def _picture(pixels: np.ndarray) -> Image.Image:
    """Return RGB pixels as an image; grey ones as a grey image, which is stored smaller."""
    grey = pixels[..., 0]
    is_grey = np.array_equal(grey, pixels[..., 1]) and np.array_equal(grey, pixels[..., 2])
    return Image.fromarray(grey if is_grey else pixels)


def _scaled(image: Image.Image, short_side: int, how: Image.Resampling) -> Image.Image:
    scale = short_side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, how, reducing_gap=None if how == Image.Resampling.NEAREST else 3.0)

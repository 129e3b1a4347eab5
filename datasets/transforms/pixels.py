"""Image bytes -> RGB pixels: the one decoder, whose rules docs/data.md states and every path uses."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simplejpeg
from PIL import AvifImagePlugin, Image

from datasets.transforms.exif import jpeg_orientation, orientation, png_orientation
from datasets.transforms.formats import FORMATS

MAX_PIXELS = 80_000_000
_TRANSPOSED_FROM = 5
# What simplejpeg turns into RGB; CMYK and YCCK go to Pillow.
_SIMPLEJPEG_SPACES = frozenset({"RGB", "YCbCr", "GRAY", "Gray"})
EXTRA_BYTES = "extraneous bytes before marker"
# Pillow opens an MPO as a JPEG that turns out to be one.
_OPENED = tuple(name for name in FORMATS if name != "MPO")
_TIFF_BITS, _PNG_BITS_AT = 258, 24

# Loader processes decode side by side already; by default each AVIF would start a thread a core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What must be known of an image before it is decoded."""

    height: int
    """in pixels, as it is shown"""
    width: int
    """in pixels, as it is shown"""
    is_plain_jpeg: bool
    """simplejpeg can decode it"""
    orientation: int = 1
    """EXIF's: how the stored pixels must be turned or mirrored to be shown (1: not at all)"""
    container: str = "JPEG"
    """a name of `FORMATS`"""

    @property
    def is_transposed(self) -> bool:
        """Whether rows are stored as columns."""
        return is_transposed(self.orientation)

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Height and width of the pixels before they are turned."""
        return (self.width, self.height) if self.is_transposed else (self.height, self.width)


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read size and kind of an image from its first bytes.

    Raises:
        ValueError: no image that can be read, or one of more than `max_pixels`.
    """
    header = _stored_header(data)
    if header.height * header.width > max_pixels:
        raise ValueError(f"an image of {header.width}x{header.height} pixels; data.max_pixels allows {max_pixels}")
    if header.is_transposed:
        return replace(header, height=header.width, width=header.height)
    return header


def _stored_header(data: bytes) -> Header:
    if data[:2] == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in _SIMPLEJPEG_SPACES and height > 0 and width > 0:
                return Header(height, width, True, jpeg_orientation(data))
        except ValueError:
            pass
    image = opened(data)
    return Header(image.height, image.width, False, _orientation(data, image), str(image.format))


def _orientation(data: bytes, image: Image.Image) -> int:
    if image.format == "TIFF":  # turned by Pillow when it is loaded; its size is the turned one's from the start
        return 1
    if image.format in ("JPEG", "MPO"):
        return jpeg_orientation(data)
    if image.format == "PNG":  # `image.getexif()` would decode all of it to look behind its pixels
        return png_orientation(data)
    exif = image.info.get("exif", b"")
    return orientation(exif) if isinstance(exif, bytes) else 1


def opened(data: bytes, *, load: bool = False) -> Image.Image:
    """Open an image with Pillow, and load its pixels where that is asked for.

    Raises:
        ValueError: whatever Pillow finds wrong with it. Of damaged data its readers raise nearly every type there is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which have a limit here, and of odd metadata
            image = Image.open(io.BytesIO(data), formats=_OPENED)
            if load:
                image.load()
            return image
    except MemoryError:
        raise
    except Exception as error:
        reason = "unsupported format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"corrupt, or not an image ({reason})") from error


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a whole image as it is shown: uint8 [H, W, 3].

    Raises:
        ValueError: damaged, larger than `max_pixels`, or of values that have no rule.
    """
    header = read_header(data, max_pixels=max_pixels)
    return np.ascontiguousarray(upright(stored_pixels(data, header), header.orientation))


def stored_pixels(data: bytes, header: Header) -> np.ndarray:
    """Decode a whole image as it is stored, before it is turned: RGB, uint8 [H, W, 3].

    Raises:
        ValueError: damaged, or of values that have no rule.
    """
    pixels = decode_jpeg(data) if header.is_plain_jpeg else _rgb(opened(data, load=True), data)
    if pixels.shape[:2] != header.stored_shape:
        raise ValueError(f"corrupt image: {pixels.shape[:2]} pixels, its header says {header.stored_shape}")
    return pixels


def is_transposed(orientation: int) -> bool:
    """Say whether rows are stored as columns."""
    return orientation >= _TRANSPOSED_FROM


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror stored pixels [H, W, 3] into what is shown."""
    if is_transposed(orientation):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def decode_jpeg(data: bytes, **scale: int) -> np.ndarray:
    """Decode a plain JPEG with simplejpeg, at its own scale or a smaller one.

    Raises:
        ValueError: the data is corrupt.
    """
    try:
        return simplejpeg.decode_jpeg(data, **scale)
    except ValueError as error:
        if EXTRA_BYTES not in str(error):
            raise
        return simplejpeg.decode_jpeg(data, strict=False, **scale)  # harmless: all rows were there


def _rgb(image: Image.Image, data: bytes) -> np.ndarray:
    """Return a loaded image as RGB: deep grey scaled to 8 bits, transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    try:
        if not image.has_transparency_data:
            return np.array(image.convert("RGB"))
        _scale_colour_key(image, data)
        over = image.convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"corrupt image, or unsupported colours (mode {image.mode}: {error})") from error


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Return grey of 12, 16 or 32 bits, or of floats from 0 to 1, as RGB uint8 [H, W, 3].

    The scale is the format's, never the image's own: two images with the same values look the same.
    """
    values = np.array(image)
    if image.mode == "F":
        _check_range(values, 1)
        grey = np.floor(values * 255 + 0.5).astype(np.uint8)
    else:
        bits = 12 if _bits(image) == (12,) else 16
        values = values.astype(np.int64)
        _check_range(values, (1 << bits) - 1)
        grey = (values >> (bits - 8)).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _check_range(values: np.ndarray, largest: int) -> None:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= largest):  # NaN neither
        raise ValueError(
            f"grey values from {low:.6g} to {high:.6g}: only 0 to {largest} is supported; save it with 8 or 16 bits"
        )


def _bits(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {}).get(_TIFF_BITS)


def _scale_colour_key(image: Image.Image, data: bytes) -> None:
    """Bring a PNG's transparent colour to the 8 bits that its pixels were brought to; Pillow leaves it as it is."""
    key = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("1", "L", "RGB") or isinstance(key, bytes) or key is None:
        return
    bits = data[_PNG_BITS_AT]
    scale = (lambda value: value >> 8) if bits == 16 else (lambda value: value * 255 // ((1 << bits) - 1))
    image.info["transparency"] = tuple(map(scale, key)) if isinstance(key, tuple) else scale(key)

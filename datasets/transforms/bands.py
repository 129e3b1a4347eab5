"""Image bytes -> the values that they hold, unchanged: any number of channels, of uint8, uint16 or float32.

NumPy arrays, TIFFs with any number of bands, and what Pillow opens without a change of its values: grey of 16 bits,
grey, RGB and their like of 8 bits.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar, get_args

import numpy as np
from PIL import Image

from datasets.transforms.exif import png_orientation
from datasets.transforms.formats import ARRAYS, RGB, PixelFormat, PixelType
from datasets.transforms.pixels import MAX_PIXELS, Header, decode_rgb, opened, read_header

if TYPE_CHECKING:
    from tifffile import TiffPage

_ARRAY_MAGIC = b"\x93NUMPY"
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LARGEST_HEADER = 10_000
_TYPES = frozenset(get_args(PixelType)) - {"rgb"}
_MODES = {"L": ("uint8", 1), "LA": ("uint8", 2), "RGB": ("uint8", 3), "RGBA": ("uint8", 4), "CMYK": ("uint8", 4),
          "I;16": ("uint16", 1), "I;16B": ("uint16", 1)}  # fmt: skip
_PNG_BITS_AT = 24
_ORIENTATION = 274
_PALETTE, _YCBCR = 3, 6
_Found = tuple[Header, PixelFormat, Callable[[], np.ndarray]]
"""What an image is, and what reads its values."""
_T = TypeVar("_T")


def band_header(data: bytes, pixels: PixelFormat, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read size and kind of an image whose values are read as they are stored.

    Raises:
        ValueError: it can't be read so, has more than `max_pixels`, or holds other values than `pixels`.
    """
    header, found, _ = _look(data)
    _check_size(header, found, max_pixels)
    if found != pixels:
        raise ValueError(f"the image holds {found}; the data's are {pixels} (data.pixel_type, data.channels)")
    return header


def any_header(data: bytes) -> Header:
    """Read size and kind of an image, whichever way it is to be read.

    Raises:
        ValueError: no image that can be read.
    """
    return _as_rgb_or_bands(data, read_header, lambda: _look(data)[0])


def checked_format(data: bytes) -> PixelFormat:
    """Decode an image and return what it can be read as: RGB where that is possible.

    Raises:
        ValueError: damaged.
    """

    def bands() -> PixelFormat:
        decode_bands(data)
        return _look(data)[1]

    def rgb(data: bytes) -> PixelFormat:
        decode_rgb(data)
        return RGB

    return _as_rgb_or_bands(data, rgb, bands)


def _as_rgb_or_bands(data: bytes, rgb: Callable[[bytes], _T], bands: Callable[[], _T]) -> _T:
    """Return what the first of two ways that works gives; if neither does, what is wrong with the nearer one counts."""
    if data.startswith(_ARRAY_MAGIC):
        return bands()
    try:
        return rgb(data)
    except ValueError as error:
        if not data.startswith(_TIFF_MAGICS):
            raise
        try:
            return bands()
        except ValueError:
            if _is_picture(data):
                raise error from None
            raise


def _is_picture(data: bytes) -> bool:
    try:
        opened(data)
    except ValueError:
        return False
    return True


def decode_bands(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return an image's values as they are stored: uint8, uint16 or float32 [H, W, C].

    Raises:
        ValueError: damaged, larger than `max_pixels`, or of values that can't be read as they are stored.
    """
    header, pixels, read = _look(data)
    _check_size(header, pixels, max_pixels)
    values = read().reshape(header.height, header.width, pixels.channels)
    if pixels.kind == "float32" and not np.isfinite(values).all():
        raise ValueError("some of the image's values are not finite: give pixels without data a number")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _look(data: bytes) -> _Found:
    if data.startswith(_ARRAY_MAGIC):
        return _array(data)
    if data.startswith(_TIFF_MAGICS):
        return _tiff(data)
    return _picture(data)


def _array(data: bytes) -> _Found:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream, max_header_size=_LARGEST_HEADER)
    except Exception as error:  # of damaged data, its parser raises nearly every type there is
        raise ValueError(f"corrupt, or not an array ({error})") from error
    if len(shape) not in (2, 3) or dtype.hasobject:
        raise ValueError(f"an array of shape {shape} and {dtype}: images are numbers [H, W] or [H, W, C]")
    count, size = len(data) - stream.tell(), int(np.prod(shape, dtype=object)) * dtype.itemsize
    if count != size:
        raise ValueError(f"corrupt array: {count} bytes for shape {shape} of {dtype}")
    height, width, *depth = shape
    read = partial(np.load, io.BytesIO(data), allow_pickle=False)
    return _header(height, width, ARRAYS), _format(dtype.name, *depth), read


def _tiff(data: bytes) -> _Found:
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            "a TIFF of bands is read by tifffile, which is not installed: `uv pip install tifffile imagecodecs` adds it"
        ) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said once, by the exception
    page: TiffPage = _guarded(lambda: tifffile.TiffFile(io.BytesIO(data)).pages.first.aspage())
    turned = _guarded(lambda: int(page.tags.valueof(_ORIENTATION, 1)))
    if page.photometric in (_PALETTE, _YCBCR):
        raise ValueError(f"a TIFF of palette or YCbCr colours (photometric {int(page.photometric)}): save it plainly")
    if page.dtype is None or page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"a TIFF of {page.bitspersample} bits and axes {page.axes}: save it with 8 or 16 bits or as "
                         "float32")  # fmt: skip
    _check_upright(turned)
    found = _format(page.dtype.name, page.samplesperpixel)

    def read() -> np.ndarray:
        # One thread: loader processes decode side by side already.
        values: np.ndarray = _guarded(lambda: page.asarray(maxworkers=1))
        return values.transpose(1, 2, 0) if page.axes == "SYX" else values

    return _header(page.imagelength, page.imagewidth, "TIFF"), found, read


def _guarded(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # of damaged data, tifffile raises nearly every type there is
        raise ValueError(f"corrupt TIFF ({error or type(error).__name__})".replace("\n", " ")) from error


def _picture(data: bytes) -> _Found:
    image = opened(data)
    if image.mode not in _MODES or (image.format == "PNG" and data[_PNG_BITS_AT] == 16 and image.mode != "I;16"):
        raise ValueError(
            f"its values (mode {image.mode}) can't be read as they are stored: save it as NPY, or as TIFF of 8 or 16 "
            "bits or float32"
        )
    _check_upright(_orientation(data, image))
    header = _header(image.height, image.width, str(image.format))
    return header, _format(*_MODES[image.mode]), lambda: np.asarray(opened(data, load=True))


def _check_upright(orientation: int) -> None:
    if orientation != 1:
        raise ValueError(
            f"its orientation tag is {orientation}, and its values are read as they are stored: save it upright"
        )


def _check_size(header: Header, pixels: PixelFormat, max_pixels: int) -> None:
    if header.height * header.width * -(-pixels.channels // 4) > max_pixels:
        raise ValueError(
            f"an image of {header.width}x{header.height} pixels, {pixels}; data.max_pixels allows {max_pixels} of up "
            "to 4 channels"
        )


def _orientation(data: bytes, image: Image.Image) -> int:
    if image.format == "PNG":  # `image.getexif()` would decode all of it to look behind its pixels
        return png_orientation(data)
    return int(image.getexif().get(_ORIENTATION, 1))


def _header(height: int, width: int, container: str) -> Header:
    if height < 1 or width < 1:
        raise ValueError(f"an image of {width}x{height} pixels")
    return Header(height, width, False, container=container)


def _format(dtype: str, channels: int = 1) -> PixelFormat:
    if dtype not in _TYPES or channels < 1:
        raise ValueError(
            f"its values are {dtype}, in {channels} channels: save them as uint8, uint16 or float32, channels last"
        )
    return PixelFormat(dtype, channels)  # type: ignore[arg-type]

"""Values as they are stored: every container gives back what was put into it, and what can't is refused in one line."""

from __future__ import annotations

import contextlib
import io
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.transforms.bands import any_header, band_header, checked_format, decode_bands
from datasets.transforms.decode import decode_crop, decode_whole, eval_crop, image_header
from datasets.transforms.formats import PixelFormat
from datasets.transforms.pixels import MAX_PIXELS
from tests.support.bands import npy, tiff
from tests.support.shards import image_of

TYPES = ("uint8", "uint16", "float32")


@st.composite
def values_of(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(TYPES))
    if kind == "float32":
        return generator.normal(0, 1e4, shape).astype(np.float32)
    return generator.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def same(data: bytes, values: np.ndarray) -> None:
    got = decode_bands(data)
    assert got.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(got, values)
    header = any_header(data)
    assert (header.height, header.width) == values.shape[:2]
    pixels = PixelFormat(values.dtype.name, values.shape[2])  # type: ignore[arg-type]
    assert band_header(data, pixels) == header


@settings(max_examples=50, deadline=None)
@given(values_of(), st.sampled_from("<>="), st.booleans())
def test_an_array_is_read_as_it_was_saved(values: np.ndarray, order: str, in_columns: bool) -> None:
    stored = values.astype(values.dtype.newbyteorder(order), order="F" if in_columns else "C")
    same(npy(stored), values)
    same(npy(stored[..., 0]), values[..., :1])


@settings(max_examples=100, deadline=None)
@given(
    values=values_of(),
    byteorder=st.sampled_from("<>"),
    compression=st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"]),
    predictor=st.booleans(),
    planar=st.booleans(),
    tile=st.sampled_from([None, None, (16, 16), (32, 16)]),
    bigtiff=st.booleans(),
)
def test_a_tiff_is_read_as_it_was_written(
    values: np.ndarray, predictor: bool, compression: str | None, **options: Any
) -> None:
    if compression in ("zlib", "lzw", "zstd"):
        options["predictor"] = predictor
    same(tiff(values, compression=compression, **options), values)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_what_pillow_writes_is_what_it_says(mode: str) -> None:
    generator = np.random.default_rng(0)
    if mode == "F":
        image = Image.fromarray(generator.normal(0, 100, (33, 47)).astype(np.float32))
    elif mode == "I;16":
        image = Image.fromarray(generator.integers(0, 65536, (33, 47), dtype=np.uint16))
    else:
        depth = len(Image.new(mode, (1, 1)).getbands())
        image = Image.frombytes(mode, (47, 33), generator.bytes(33 * 47 * depth))
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression="tiff_lzw")
    same(stream.getvalue(), np.array(image).reshape(33, 47, -1))


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_deep_grey_keeps_its_depth(container: str) -> None:
    values = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 31
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, container)
    same(stream.getvalue(), values[..., None])


def png16_colour() -> bytes:
    """The header of a PNG of 16 bits a channel, RGB, and no pixels."""
    stream = io.BytesIO()
    Image.fromarray(image_of(1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[24] = 16
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_of(1, 1)).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded("JPEG", exif=exif)


def palette() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_of(1, 1)).convert("P").save(stream, "TIFF")
    return stream.getvalue()


CUBE = np.zeros((4, 5, 6), np.uint16)
REFUSED = {
    "shape": (npy(np.zeros((2, 3, 4, 5), np.uint8)), r"^an array of shape \(2, 3, 4, 5\) and uint8: images are"),
    "objects": (npy(np.zeros((2, 3), dtype="O")), r"^an array of shape"),
    "type": (npy(np.zeros((2, 3), np.int64)), r"^its values are int64, in 1 channels: save them as uint8, uint16 or"),
    "empty": (npy(np.zeros((0, 3), np.uint8)), r"^an image of 3x0 pixels"),
    "cut array": (npy(CUBE)[:-3], r"^corrupt array: 237 bytes for shape \(4, 5, 6\) of uint16"),
    "array's head": (npy(CUBE)[:20], r"^corrupt, or not an array"),
    "int16": (tiff(np.zeros((4, 5, 6), np.int16)), r"^its values are int16, in 6 channels"),
    "palette": (palette(), r"^a TIFF of palette or YCbCr colours"),
    "turned tiff": (tiff(CUBE, extratags=[(274, 3, 1, 6, True)]), r"^its orientation tag is 6"),
    "cut tiff": (tiff(CUBE, compression="lzw")[:30], r"^corrupt TIFF"),
    "cut strips": (tiff(CUBE)[:-30], r"^corrupt TIFF"),
    "colour png": (png16_colour(), r"can't be read as they are stored: save it as NPY"),
    "turned jpeg": (turned(), r"^its orientation tag is 6"),
    "nothing": (b"nothing", r"^corrupt, or not an image"),
    "nan": (npy(np.array([[np.nan, 1]], np.float32)), r"^some of the image's values are not finite"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(which: str) -> None:
    data, message = REFUSED[which]
    with pytest.raises(ValueError, match=message) as error:
        decode_bands(data)
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 400), st.sampled_from(["npy", "tiff", "packed"]))
def test_damage_is_a_value_error_or_gives_an_image(noise: bytes, place: int, kind: str) -> None:
    values = np.arange(6 * 7 * 5, dtype=np.uint16).reshape(6, 7, 5)
    data = npy(values) if kind == "npy" else tiff(values, compression=None if kind == "tiff" else "zlib")
    place = min(place, len(data))
    damaged = data[:place] + noise + data[place + len(noise) :]
    with contextlib.suppress(ValueError):
        decode_bands(damaged, max_pixels=10_000)


def test_other_values_than_the_datas_are_named() -> None:
    with pytest.raises(ValueError, match=r"^the image holds 6 channels of uint16; the data's are 5 channels of uint16"):
        image_header(npy(CUBE), PixelFormat("uint16", 5))
    with pytest.raises(ValueError, match=r"^an image of 5x4 pixels, 6 channels of uint16; data.max_pixels allows 39"):
        image_header(npy(CUBE), PixelFormat("uint16", 6), max_pixels=39)
    with pytest.raises(ValueError, match="corrupt, or not an image"):
        image_header(npy(CUBE))


def test_a_crop_is_the_values_and_a_smaller_one_their_means() -> None:
    values = np.random.default_rng(3).integers(0, 60000, (48, 64, 5), dtype=np.uint16)
    pixels = PixelFormat("uint16", 5)
    header = image_header(npy(values), pixels, max_pixels=MAX_PIXELS)
    same_size = decode_crop(npy(values), header, (3, 4, 32, 32), (32, 32), pixels)
    assert same_size.dtype == np.float32
    assert np.array_equal(same_size, values[3:35, 4:36])
    small = decode_crop(tiff(values), header, eval_crop(header, (24, 24), rule="whole"), (24, 24), pixels)
    assert small.shape == (24, 24, 5)
    assert np.allclose(small.mean((0, 1)), values.mean((0, 1)), rtol=0.02)
    whole = decode_whole(npy(values), pixels)
    assert whole.dtype == np.float32
    assert np.array_equal(whole, values)


def test_images_are_rgb_where_they_can_be() -> None:
    assert checked_format(encoded("PNG")).is_rgb
    assert checked_format(npy(CUBE)) == PixelFormat("uint16", 6)
    assert checked_format(tiff(CUBE)) == PixelFormat("uint16", 6)


def test_a_missing_tiff_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(CUBE)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(
        ValueError, match="a TIFF of bands is read by tifffile, which is not installed: `uv pip install tifffile image"
    ):
        decode_bands(data)
    assert decode_bands(npy(CUBE)).shape == CUBE.shape

"""Small images of every container, mode, depth, transparency and orientation, each with the RGB that it shows."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF's orientation -> how an image is stored so that it is shown as it was."""
_LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "GIF": {},
    "JPEG2000": {},
    "PPM": {},
}
_LOSSY = {
    "JPEG": {"quality": 98, "subsampling": 0},
    "MPO": {"quality": 98, "subsampling": 0},
    "AVIF": {"quality": 98, "subsampling": "4:4:4", "max_threads": 1},
}
_WITH_EXIF = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF")
_EXTENSION = {"JPEG2000": "jp2", "TIFF": "tif", "JPEG": "jpg", "MPO": "jpg", "PPM": "ppm"}


class OddImage(NamedTuple):
    """An encoded image, and what it shows."""

    name: str
    """A file's name with an extension of its container."""
    data: bytes
    shown: np.ndarray
    """RGB, uint8 [H, W, 3]"""
    tolerance: float
    """Largest mean difference of what is decoded; 0: none at all."""


def odd_images(height: int = 24, width: int = 40) -> Iterator[OddImage]:
    """Yield images of every kind that is accepted, of `height` x `width` pixels as they are shown."""
    yield from _modes(height, width)
    yield from _oriented(height, width)
    yield from _late_exif(height, width)
    yield from _colour_keys(height, width)


def picture(height: int, width: int) -> np.ndarray:
    """A picture without any symmetry: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pixels = np.stack([40 + 200 * x / width, 20 + 150 * y / height, 128 + 100 * np.sin(x / 9 + y / 5)], axis=-1)
    pixels[: height // 4, : width // 3] = (230, 60, 60)
    return pixels.astype(np.uint8)


def _modes(height: int, width: int) -> Iterator[OddImage]:
    for label, image, shown, tolerance in _sources(height, width):
        for container, options in {**_LOSSLESS, **_LOSSY}.items():
            if not _can_hold(container, image):
                continue
            stream = io.BytesIO()
            try:
                image.copy().save(stream, container, **options)  # of a copy: some writers change the palette
            except (OSError, ValueError):  # the container doesn't have this mode
                continue
            lossy = 3.0 if container in _LOSSY else 0.0
            yield OddImage(_name(label, container), stream.getvalue(), shown, max(tolerance, lossy))


def _can_hold(container: str, image: Image.Image) -> bool:
    """Say whether a container keeps all of an image: Pillow drops alpha, depth or colours in some without a word."""
    if image.mode == "I;16B":
        return container in ("PNG", "TIFF")
    if image.mode in ("I", "F", "I;16"):
        return container in ("PNG", "TIFF", "PPM", "JPEG2000")
    if image.mode in ("RGBA", "LA"):
        return container in ("PNG", "WEBP", "TIFF", "AVIF", "JPEG2000")
    if "transparency" in image.info:
        return container in ("PNG", "WEBP", "GIF", "AVIF")
    return container != "GIF" or image.mode in ("P", "L", "1")


def _sources(height: int, width: int) -> Iterator[tuple[str, Image.Image, np.ndarray, float]]:
    """Yield (label, image of one mode, what it shows, tolerance)."""
    rgb = picture(height, width)
    grey = rgb[..., 0]
    yield "rgb", Image.fromarray(rgb), rgb, 0
    yield "grey", Image.fromarray(grey), _grey(grey), 0
    bits = np.where(grey > 128, 255, 0).astype(np.uint8)
    yield "1bit", Image.fromarray(bits).convert("1"), _grey(bits), 0
    hidden = np.zeros((height, width), dtype=bool)
    hidden[height // 2 :, : width // 2] = True
    alpha = np.where(hidden, 0, 255).astype(np.uint8)
    yield "rgba", Image.fromarray(np.dstack([rgb, alpha])), _over_white(rgb, alpha), 0
    yield "la", Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), _over_white(_grey(grey), alpha), 0
    half = np.full_like(alpha, 100)
    yield "half", Image.fromarray(np.dstack([rgb, half])), _over_white(rgb, half), 1.0
    yield "cmyk", Image.fromarray(np.dstack([255 - rgb, 0 * grey]), mode="CMYK"), rgb, 0
    yield "ycbcr", Image.fromarray(rgb).convert("YCbCr"), rgb, 1.5
    yield from _deep(height, width)
    yield from _palettes(grey, hidden)


def _deep(height: int, width: int) -> Iterator[tuple[str, Image.Image, np.ndarray, float]]:
    ramp = np.linspace(0, 65535, height * width).reshape(height, width)
    whole = ramp.astype(np.uint16)
    eight = (whole >> 8).astype(np.uint8)
    yield "grey16", Image.fromarray(whole), _grey(eight), 0
    yield "grey16big", _big_endian(whole), _grey(eight), 0
    yield "int32", Image.fromarray(whole.astype(np.int32)), _grey(eight), 0
    share = (ramp / 65535).astype(np.float32)
    yield "float", Image.fromarray(share), _grey(np.floor(share * 255 + 0.5).astype(np.uint8)), 0


def _big_endian(values: np.ndarray) -> Image.Image:
    return Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())


def _palettes(grey: np.ndarray, hidden: np.ndarray) -> Iterator[tuple[str, Image.Image, np.ndarray, float]]:
    numbers = (grey // 64).astype(np.uint8)
    colours = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200], [90, 90, 30]], dtype=np.uint8)
    image = Image.fromarray(numbers, mode="P")
    image.putpalette(colours.tobytes())
    yield "palette", image, colours[numbers], 0
    clear = image.copy()
    clear.info["transparency"] = 1
    yield "palette_clear", clear, np.where((numbers == 1)[..., None], 255, colours[numbers]).astype(np.uint8), 0


def _oriented(height: int, width: int) -> Iterator[OddImage]:
    shown = picture(height, width)
    for number in range(1, 9):
        image = Image.fromarray(shown)
        stored = image.transpose(_TURNED[number]) if number in _TURNED else image
        exif = Image.Exif()
        exif[0x0112] = number
        for container in _WITH_EXIF:
            stream, lossy = io.BytesIO(), container in _LOSSY
            more = {"save_all": True, "append_images": [stored.rotate(180)]} if container == "MPO" else {}
            stored.save(stream, container, exif=exif, **{**_LOSSLESS, **_LOSSY}[container], **more)
            yield OddImage(_name(f"exif{number}", container), stream.getvalue(), shown, 3.0 if lossy else 0.0)


def _late_exif(height: int, width: int) -> Iterator[OddImage]:
    """EXIF where it may be, and is seldom: behind a large profile in a JPEG, behind the pixels in a PNG."""
    shown = picture(height, width)
    stored, exif = Image.fromarray(shown).transpose(_TURNED[6]), Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    stored.save(stream, "JPEG", quality=98, subsampling=0, exif=exif)
    data, profile = stream.getvalue(), b"ICC_PROFILE\0\1\1" + bytes(60_000)
    segment = b"\xff\xe2" + struct.pack(">H", len(profile) + 2) + profile
    yield OddImage("late_exif.jpg", data[:2] + 2 * segment + data[2:], shown, 3.0)
    stream = io.BytesIO()
    stored.save(stream, "PNG")
    end = stream.getvalue().rindex(b"IEND") - 4
    chunk = _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    yield OddImage("late_exif.png", stream.getvalue()[:end] + chunk + stream.getvalue()[end:], shown, 0)


def _colour_keys(height: int, width: int) -> Iterator[OddImage]:
    """PNGs of every grey depth whose second grey is transparent, and an RGB one of 16 bits."""
    for bits in (1, 2, 4, 8, 16):
        values = np.arange(height * width).reshape(height, width) % (1 << min(bits, 8))
        values = values * 257 if bits == 16 else values
        eight = values >> 8 if bits == 16 else values * 255 // ((1 << bits) - 1)
        key = 257 if bits == 16 else 1
        shown = _grey(np.where(values == key, 255, eight).astype(np.uint8))
        yield OddImage(f"key{bits}.png", _grey_png(values, bits, key), shown, 0)


def _grey_png(values: np.ndarray, bits: int, key: int) -> bytes:
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        each = ((values[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(values), -1).astype(np.uint8)
        rows = [np.packbits(row).tobytes() for row in each]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", head), (b"tRNS", struct.pack(">H", key)), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)


def _name(label: str, container: str) -> str:
    return f"{label}_{container.lower()}.{_EXTENSION.get(container, container.lower())}"

"""Image files -> the bytes that go into a shard."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from datasets.errors import DataError

JPEG_QUALITY = 95


def file_bytes(path: Path) -> tuple[str, bytes]:
    """Return (extension, bytes) for one image file: a JPEG as it is, anything else as a JPEG of quality 95.

    Other formats are converted because decoding is what a loader spends its time on: a JPEG decodes faster than a PNG,
    and only it decodes at a smaller scale.

    Raises:
        DataError: no image that can be read.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return "jpg", data if image.format == "JPEG" else jpeg_bytes(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); repair or remove it and run again") from error


def jpeg_bytes(image: Image.Image) -> bytes:
    """Encode as JPEG of quality 95 without colour subsampling; grey stays grey."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()

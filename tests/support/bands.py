"""Images of any number of channels for tests: NumPy's and TIFF files, and shards of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.support.shards import image_of, mask_of, png, write_samples


def npy(values: np.ndarray) -> bytes:
    """Encode as NumPy does."""
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def tiff(values: np.ndarray, *, planar: bool = False, **options: Any) -> bytes:
    """Write [H, W, C] as a TIFF; `options` are those of `tifffile.imwrite`."""
    stream, layout = io.BytesIO(), {"planarconfig": "separate" if planar else "contig"}
    if values.shape[2] == 1:
        values, layout = values[..., 0], {}
    elif planar:
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    tifffile.imwrite(stream, values, **{"photometric": "minisblack", "metadata": None, **layout, **options})
    return stream.getvalue()


def bands_of(label: int, number: int, *, channels: int = 5, side: int = 40) -> np.ndarray:
    """A noisy image whose label is told by its fourth channel alone: uint16 [side, side, channels], 0 to 4000."""
    generator = np.random.default_rng(number)
    values = generator.integers(0, 4000, (side, side, channels), dtype=np.uint16)
    values[..., 3] = generator.integers(500 + 1500 * label, 1500 + 1500 * label, (side, side), dtype=np.uint16)
    return values


def write_band_shards(folder: Path, counts: list[int], *, container: str = "npy") -> Path:
    """Shards with images of `bands_of`, labels 0 and 1 in turn, and their manifest."""

    def sample(number: int) -> dict[str, object]:
        values = bands_of(number % 2, number)
        return {container: npy(values) if container == "npy" else tiff(values, compression="zlib"), "cls": number % 2}

    source = {"pixels": {"type": "uint16", "channels": 5}}
    return write_samples(folder, counts, sample, classes=["low", "high"], source=source)


def write_masked_band_shards(folder: Path, count: int) -> Path:
    """A segmentation shard of 2 channels of float32, 48x64 px, whose masks of 3 classes follow the second one."""

    def sample(number: int) -> dict[str, object]:
        values = image_of(1, number)[..., [1, 0]].astype(np.float32) / 100 - 1
        return {"npy": npy(values), "mask.png": png(mask_of(1, number))}

    source = {"pixels": {"type": "float32", "channels": 2}}
    classes = ["low", "middle", "high"]
    return write_samples(folder, [count], sample, classes=classes, kind="segmentation", source=source)

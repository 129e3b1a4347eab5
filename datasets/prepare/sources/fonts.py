"""Font identification: words drawn in free fonts; the class is the family. Size and regularization matter here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from datasets.errors import DataError
from datasets.prepare.encode import jpeg_bytes
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.sources.debian import fetch_packages
from datasets.prepare.sources.font_table import FAMILIES
from datasets.prepare.sources.words import random_word
from datasets.transforms.randomness import Purpose, sample_generator

_SPLIT_NUMBERS = {"train": 0, "val": 1}
_MOST_PER_CLASS = 1 << 24


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "crescendo" / "fonts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fonts(Source):
    """Font identification: made-up words in free fonts, one class a family; no word is in both splits."""

    name: ClassVar[str] = "fonts"
    notice: ClassVar[str] = (
        "Fonts: free families of Debian's main archive, fetched once with apt (no root needed) and kept in a cache."
    )

    families: int = 60
    """Number of classes: the first families of the table (or of `font_folder`)."""
    train_images: int = 60
    """Training images per class."""
    val_images: int = 20
    """Validation images per class."""
    size: int = 128
    """Side of the images in pixels."""
    text_size: tuple[int, int] = (24, 44)
    """Smallest and largest font size in pixels. Small text becomes illegible when an early stage scales the image
    down."""
    rotation: float = 12.0
    """Largest rotation in degrees, in either direction."""
    noise: float = 14.0
    """Largest standard deviation of the pixel noise, in grey levels of 255."""
    seed: int = 0
    """Seed of everything that is drawn; another seed gives other words and images."""
    font_folder: Path | None = None
    """Use the .ttf and .otf files in this folder, one class per file, instead of downloading fonts."""
    font_cache: Path = field(default_factory=_default_cache)
    """Cache folder for downloaded fonts."""

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images"):
            if not 0 < getattr(self, name) < _MOST_PER_CLASS:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if self.families < 2:
            raise ValueError(f"--families is {self.families}; it must be at least 2")
        if self.size < 16:
            raise ValueError(f"--size is {self.size} px; it must be at least 16")
        if not 6 <= self.text_size[0] <= self.text_size[1]:
            raise ValueError(
                f"--text-size is {self.text_size[0]} {self.text_size[1]} px; it must be 6 <= smallest <= largest"
            )
        if self.rotation < 0 or self.noise < 0:
            raise ValueError(f"--rotation is {self.rotation} and --noise {self.noise}; both must be 0 or more")

    def plan(self) -> Plan:
        """List the images to be drawn; fetches the fonts if they are not in the cache.

        Raises:
            DataError: fonts can't be fetched, or there are fewer than `families`.
        """
        fonts = self._fonts()
        counts = {"train": self.train_images, "val": self.val_images}
        marks = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in fonts.items()}
        splits = {
            split: tuple(
                Item(f"{name}/{number}", label, marks[name])
                for label, name in enumerate(fonts)
                for number in range(count)
            )
            for split, count in counts.items()
        }
        return Plan(classes=tuple(fonts), splits=splits, origin={"fonts": marks})

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Draw one image and return it as JPEG."""
        name, number = item.name.rsplit("/", 1)
        position = (_SPLIT_NUMBERS[split] * 4096 + item.label) * _MOST_PER_CLASS + int(number)
        generator = sample_generator(self.seed, Purpose.RENDER, position)
        return "jpg", jpeg_bytes(self.draw(_fonts_of(self)[name], split, generator))

    def draw(self, font: Path, split: str, generator: np.random.Generator) -> Image.Image:
        """Draw words of a split in one font: position, size, rotation, contrast, shading, blur and noise vary."""
        size = self.size
        face = _face(str(font), int(generator.integers(*self.text_size, endpoint=True)))
        mask = _text_mask(size, face, split, generator)
        angle = float(generator.uniform(-self.rotation, self.rotation))
        mask = mask.rotate(angle, Image.Resampling.BICUBIC)
        if generator.random() < 0.3:
            mask = mask.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.3, 1.0))))
        paper, ink = _colours(generator)
        coverage = np.asarray(mask, dtype=np.float32)[..., None] / 255.0
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
        slope = generator.uniform(-40.0, 40.0, size=2)
        pixels = paper + (ink - paper) * coverage + (slope[0] * x + slope[1] * y)[..., None]
        pixels += generator.normal(0.0, 1.0, size=(size, size, 1)) * generator.uniform(0.0, self.noise)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _fonts(self) -> dict[str, Path]:
        fonts = _fonts_of(self)
        if len(fonts) < self.families:
            source = self.font_folder or "this distribution"
            raise DataError(f"--families is {self.families}, but {source} has only {len(fonts)} fonts; ask for fewer")
        return fonts


@lru_cache(maxsize=1)
def _fonts_of(config: Fonts) -> dict[str, Path]:
    """Return the face of each family, in label order."""
    if config.font_folder is not None:
        files = sorted(path for path in config.font_folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
        return {path.stem: path for path in files[: config.families]}
    folders = fetch_packages([f"fonts-{family.package}" for family in FAMILIES], config.font_cache)
    found: dict[str, Path] = {}
    for family in FAMILIES:
        folder = folders.get(f"fonts-{family.package}")
        file = next(iter(folder.rglob(family.file)), None) if folder else None
        if file is not None and len(found) < config.families:
            found[family.name] = file
    return found


@lru_cache(maxsize=256)
def _face(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _text_mask(size: int, face: ImageFont.FreeTypeFont, split: str, generator: np.random.Generator) -> Image.Image:
    """Draw one to three words under each other, most of them inside: coverage of the ink, `L` [size, size]."""
    lines = int(generator.integers(1, 3, endpoint=True))
    text = "\n".join(random_word(split, generator) for _ in range(lines))
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=face)
    free = np.array([size - (right - left), size - (bottom - top)])
    # A text larger than the image may be cut at either side, a smaller one lies anywhere in it.
    x, y = generator.uniform(np.minimum(free, 0) * 0.6, np.maximum(free, 0.0) + np.minimum(free, 0) * 0.4)
    pen.multiline_text((x - left, y - top), text, font=face, fill=255)
    return mask


def _colours(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (paper, ink), float [3] each, at least 70 grey levels apart, either of them the lighter one."""
    dark, light = generator.uniform(0, 90), generator.uniform(160, 255)
    tints = generator.uniform(-20, 20, size=(2, 3))
    pair = (np.array([light] * 3) + tints[0], np.array([dark] * 3) + tints[1])
    return pair if generator.random() < 0.7 else pair[::-1]

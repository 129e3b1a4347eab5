"""Which files are images: the containers that the decoder reads, their extensions, and what their pixels are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PixelType = Literal["rgb", "uint8", "uint16", "float32"]


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """What the pixels of a dataset's images are."""

    kind: PixelType = "rgb"
    """rgb: whatever an image holds, turned into RGB of 8 bits; else the type of the values, which are read as they are
    stored"""
    channels: int = 3

    @property
    def is_rgb(self) -> bool:
        """Whether images become RGB of 8 bits."""
        return self.kind == "rgb"

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a run on images of these pixels."""
        if self.is_rgb:
            return ()
        channels = str(self.channels)
        pixels = ("--data.pixel-type", self.kind, "--data.channels", channels, "--model.in-channels", channels)
        return (*pixels, "--data.randaugment-policy", "geometric")

    def __str__(self) -> str:
        return "RGB of 8 bits" if self.is_rgb else f"{self.channels} channel{'s'[: self.channels != 1]} of {self.kind}"


RGB = PixelFormat()

IGNORED = 255
"""Value of the pixels of a mask that have no class: the loss and the metrics leave them out."""

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "MPO": ("jpg", "jpeg", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k"),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
"""Pillow's name of a container -> its extensions, the usual one first. Nothing else is opened: some of Pillow's other
formats start programs."""

IMAGE_EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
"""Extensions in lower case, without the dot."""

ARRAYS = "npy"
"""Container and extension of NumPy's arrays: [H, W] or [H, W, C]. In a tar, one beside an image is no image."""


def extension_for(container: str, name: str) -> str:
    """Return the extension of an image's file name where its container has it, else the container's usual one."""
    own = name.rpartition(".")[2].lower()
    usual = FORMATS.get(container, (ARRAYS,))
    return own if own in usual else usual[0]


def is_image_name(name: str) -> bool:
    """Say whether a file of this name is taken for an image: hidden ones never are."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in {*IMAGE_EXTENSIONS, ARRAYS}


def arrays_beside_images(names: Iterable[str]) -> set[str]:
    """Return the arrays among the paths that an image of the same name lies beside: they are something of its."""
    pictures, arrays = set[str](), list[tuple[str, str]]()
    for name in names:
        stem, _, extension = name.rpartition(".")
        if extension.lower() in IMAGE_EXTENSIONS:
            pictures.add(stem)
        elif extension.lower() == ARRAYS:
            arrays.append((stem, name))
    return {name for stem, name in arrays if stem in pictures}

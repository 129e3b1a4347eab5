"""Which files are images: the containers that the decoder reads, and their extensions in folders and tars."""

from __future__ import annotations

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


def extension_for(container: str, name: str) -> str:
    """Return the extension of an image's file name where its container has it, else the container's usual one."""
    own = name.rpartition(".")[2].lower()
    return own if own in FORMATS[container] else FORMATS[container][0]


def is_image_name(name: str) -> bool:
    """Say whether a file of this name is taken for an image: hidden ones never are."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS

"""What the pixels of somebody's masks mean: values or colours -> class numbers."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.errors import DataError
from datasets.transforms.bands import any_header
from datasets.transforms.formats import IGNORED

_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM")
_MOST_NAMED = 3
_HALF = 128


class NoClassError(ValueError):
    """A mask has pixels of no class."""

    def __init__(self, message: str, values: list[int]) -> None:
        super().__init__(message)
        self.values = values
        """of these pixels"""


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """Class names in label order, and which pixels are of which: by their value, or by their colour."""

    names: tuple[str, ...]
    numbers: dict[int, int]
    """Value, or 65536 red + 256 green + blue -> class number, `IGNORED` for pixels that are left out."""
    by_colour: bool = False
    is_binary: bool = False
    """Grey values below 128 are the first class, the others the second one."""
    ignored: tuple[str, ...] = ()
    """What a user leaves out, as it was given."""

    @property
    def unit(self) -> str:
        """What a pixel's class follows from."""
        return "colour" if self.by_colour else "value"

    @property
    def digest(self) -> str:
        """Say what masks are made into: equal for equal meanings."""
        told = repr((self.names, sorted(self.numbers.items()), self.by_colour, self.is_binary))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def numbers_of(self, data: bytes) -> np.ndarray:
        """Return the class number of each pixel of an image file, uint8 [H, W].

        Raises:
            ValueError: no lossless image, or pixels that are of no class.
        """
        pixels = _colours(data) if self.by_colour else _values(data)
        if self.is_binary:
            return (pixels >= _HALF).astype(np.uint8)
        values, places = np.unique(pixels, return_inverse=True)
        if unknown := [int(value) for value in values if int(value) not in self.numbers]:
            raise NoClassError(self._unknown(unknown, pixels), unknown)
        numbers = np.array([self.numbers[int(value)] for value in values], np.uint8)
        return numbers[places].reshape(pixels.shape)

    def _unknown(self, values: list[int], pixels: np.ndarray) -> str:
        shown = [f"{_colour(value) if self.by_colour else value}" for value in values[:_MOST_NAMED]]
        more = f" and {len(values) - _MOST_NAMED} more" if len(values) > _MOST_NAMED else ""
        count = int(np.isin(pixels, values).sum())
        return (
            f"{count:,} of {pixels.size:,} pixels have the {self.unit} {', '.join(shown)}{more}, which is none of "
            "--classes"
        )


def mask_classes(classes: str, ignore: Sequence[str], *, binary: bool) -> MaskClasses:
    """Read what a user says of the masks.

    Args:
        classes: names separated by commas, whose pixels have the values 0, 1, ...; or a file with a name a line, or
            with `RED GREEN BLUE NAME` a line where masks are coloured.
        ignore: values of pixels that are left out, or names of classes that are none.
        binary: the masks have two classes, dark and bright.

    Raises:
        DataError: what can't be understood.
    """
    is_file = Path(classes).is_file()
    lines = Path(classes).read_text(encoding="utf-8").splitlines() if is_file else classes.split(",")
    rows = [row for line in lines if (row := line.strip()) and not row.startswith("#")]
    colours = [_colour_row(row) for row in rows] if is_file else []
    by_colour = bool(colours) and all(colours)
    listed = [row for row in colours if row] if by_colour else list(enumerate(rows))
    names = [name for _, name in listed]
    if not is_file and len(rows) == 1:
        raise DataError(f"--classes {classes}: no such file, and one class alone; name two at least, as in road,sky")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"--classes {classes}: {twice!r} is there twice")
    dropped = {name for name in ignore if name in names}
    kept = tuple(name for name in names if name not in dropped)
    numbers = {key: IGNORED if name in dropped else kept.index(name) for key, name in listed}
    for value in (value for value in ignore if value not in dropped):
        if by_colour or not value.isdecimal():
            raise DataError(f"--ignore {value}: no class of that name; there are {', '.join(names)}")
        if (number := numbers.get(int(value), IGNORED)) != IGNORED:
            raise DataError(f"--ignore {value} is the value of the class {kept[number]!r}; to leave out that class, "
                            f"name it: --ignore {kept[number]}")  # fmt: skip
        numbers[int(value)] = IGNORED
    if not 2 <= len(kept) <= IGNORED or (binary and len(kept) != 2):
        most = "two" if binary else f"2 to {IGNORED}"
        raise DataError(f"--classes {classes}: {len(kept)} classes are left; there must be {most}")
    if binary and (by_colour or ignore):
        raise DataError("--binary: masks with two classes have neither colours nor pixels to ignore; leave these out")
    return MaskClasses(kept, numbers, by_colour, binary, tuple(ignore))


remembered_mask_classes = lru_cache(maxsize=1)(mask_classes)
"""The same, read once: it is asked for with each mask, and may read a file."""


def check_mask_flags(*, mask_column: str, classes: str, ignore: Sequence[str], binary: bool) -> None:
    """Check the flags of a source that has masks in a column.

    Raises:
        ValueError: masks without names of their classes, or a flag about masks without any.
    """
    if mask_column and not classes:
        raise ValueError("--mask-column needs --classes: the names of the masks' values, as in --classes sky,road")
    if not mask_column and (ignore or binary):
        raise ValueError("--ignore and --binary are about masks: name their column with --mask-column")


def numbered_mask(classes: MaskClasses, mask: bytes, image: bytes, name: str) -> bytes:
    """Return a mask's file as a grey PNG of class numbers, 255 for pixels that are ignored.

    Args:
        classes: what its pixels mean.
        mask: the file.
        image: the file of its image.
        name: of the image, for the message.

    Raises:
        ValueError: a mask that can't be read, of another size than its image, or with pixels of no class.
        OSError: a damaged mask.
    """
    numbers, shown = classes.numbers_of(mask), any_header(image)
    if numbers.shape != (shown.height, shown.width):
        height, width = numbers.shape
        sizes = f"{width}x{height} pixels, its image {name} {shown.width}x{shown.height}"
        raise ValueError(f"the mask has {sizes}; make them equal")
    return mask_png(numbers)


def mask_png(numbers: np.ndarray) -> bytes:
    """Encode class numbers, uint8 [H, W], as a grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(numbers).save(stream, "PNG")
    return stream.getvalue()


def _colour_row(row: str) -> tuple[int, str] | None:
    parts = row.split(maxsplit=3)
    if len(parts) < 4 or not all(part.isdecimal() and int(part) <= 255 for part in parts[:3]):
        return None
    red, green, blue = map(int, parts[:3])
    return red << 16 | green << 8 | blue, parts[3]


def _colour(value: int) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})"


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_LOSSLESS)
    except OSError:
        raise ValueError(f"no mask: it must be one of {', '.join(_LOSSLESS)}, which keep every value") from None


def _values(data: bytes) -> np.ndarray:
    with _opened(data) as image:
        if image.mode in ("RGB", "RGBA", "LA"):
            bands = np.asarray(image.convert("RGB"))
            if (bands != bands[..., :1]).any():
                raise ValueError("the mask has colours; give --classes a file with RED GREEN BLUE NAME a line")
            return bands[..., 0]
        pixels = np.asarray(image)  # of a palette the indices
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def _colours(data: bytes) -> np.ndarray:
    with _opened(data) as image:
        bands = np.asarray(image.convert("RGB")).astype(np.int64)
    return bands[..., 0] << 16 | bands[..., 1] << 8 | bands[..., 2]

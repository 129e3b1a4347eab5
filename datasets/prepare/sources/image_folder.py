"""ImageFolder: one folder for each class, with or without `train` and `val` above them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from datasets.errors import DataError
from datasets.prepare.encode import file_bytes
from datasets.prepare.writer import Item, Plan
from datasets.transforms.formats import is_image_name

_VAL_FOLDERS = ("val", "valid", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """A tree of image files: PATH/train/CLASS/... and PATH/val/CLASS/..., or PATH/CLASS/... to be split."""

    name: ClassVar[str] = "image-folder"
    notice: ClassVar[str] = ""

    path: Path
    """Folder with the images."""
    val_share: float = 0.1
    """Share of the images held out for validation where there is no val folder; fixed by the files' names."""

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share is {self.val_share}; it must be between 0 and 1")

    def plan(self) -> Plan:
        """List the image files below the class folders.

        Raises:
            DataError: no such folder, no class folders, or a class of validation that training lacks.
        """
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        held_out = next((self.path / name for name in _VAL_FOLDERS if (self.path / name).is_dir()), None)
        if (self.path / "train").is_dir() and held_out is not None:
            classes = _classes(self.path / "train")
            if unknown := sorted(set(_classes(held_out)) - set(classes)):
                raise DataError(f"{held_out}: class {unknown[0]!r} has no folder in {self.path / 'train'}")
            splits = {"train": self._items(self.path / "train", classes), "val": self._items(held_out, classes)}
        else:
            classes = _classes(self.path)
            splits = self._split(self._items(self.path, classes))
        return Plan(classes=classes, splits=splits)

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one file's bytes as they are."""
        return file_bytes(self.path / item.name)

    def _items(self, folder: Path, classes: tuple[str, ...]) -> tuple[Item, ...]:
        return tuple(
            Item(str(file.relative_to(self.path)), label, _mark(file))
            for label, name in enumerate(classes)
            for file in sorted((folder / name).rglob("*"))
            if is_image_name(file.name) and file.is_file()
        )

    def _split(self, items: tuple[Item, ...]) -> dict[str, tuple[Item, ...]]:
        held_out = {item for item in items if _unit_hash(item.name) < self.val_share}
        return {
            "train": tuple(item for item in items if item not in held_out),
            "val": tuple(item for item in items if item in held_out),
        }


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: no class folders in it; images must be at {folder}/CLASS/NAME.jpg")
    return tuple(names)


def _unit_hash(name: str) -> float:
    """Return a number in [0, 1) that depends on the name only, so that new files don't move old ones."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _mark(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size} {int(stat.st_mtime)}"

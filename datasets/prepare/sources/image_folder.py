"""ImageFolder: one folder for each class, with or without `train`, `val` and `test` above them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from datasets.errors import DataError
from datasets.prepare.encode import file_bytes
from datasets.prepare.layout import (
    ROLES,
    LeftOut,
    check_folder,
    class_folders,
    count_beside,
    find_splits,
    folders,
    image_files,
    split_folder,
)
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.split import VAL_SHARE, check_share, check_unused, hold_out, mark_of
from datasets.shards.class_names import shown_classes
from datasets.shards.given_classes import class_names


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder(Source):
    """A tree of image files: PATH/train/CLASS/... and PATH/val/CLASS/..., or PATH/CLASS/... to be split."""

    name: ClassVar[str] = "image-folder"

    path: Path
    """Folder with the images."""
    val_share: float = VAL_SHARE
    """Share of each class held out for validation if there is no val folder; the file names decide which."""

    split: Literal["", "train", "val", "test"] = ""
    """Write this split alone: its folder in PATH, or all of PATH if there are no folders of splits in it."""
    classes: str = ""
    """Class names in the order of their numbers: `cat,dog`, a file with a name a line or a JSON list, a folder of
    prepared data, or a run's name or folder: those that it was trained on. Empty: the folders of the training split,
    sorted."""

    def __post_init__(self) -> None:
        check_share(self.val_share)

    @property
    def walked(self) -> tuple[Path, ...]:
        """The split folders, and what would be taken for one; `path` itself where they may be taken for classes."""
        check_folder(self.path)
        if self.split:
            return (split_folder(self.path, self.split),)
        found = find_splits(self.path)
        if len(found) < 2:
            return (self.path,)
        return (*found.values(), *(self.path / name for names in ROLES.values() for name in names))

    def plan(self) -> Plan:
        """List the image files below the class folders.

        Raises:
            DataError: no such folder, no images, or what can only be a mistake; see `datasets.prepare.layout`.
        """
        left_out, notes = LeftOut(), list[str]()
        found = self._folders(left_out)
        classes = class_names(self.classes) if self.classes else tuple(class_folders(self._base(found)))
        splits = {split: self._items(folder, classes, left_out) for split, folder in found.items()}
        if not self.split:
            _check_classes(self._base(found), classes, splits, named=bool(self.classes))
        if "val" not in splits and not self.split:
            everything = splits.pop("", ()) or splits.pop("train")
            splits = hold_out(everything, self.val_share, lambda item: item.label, self.path) | splits
            notes.append(f"val is {self.val_share:.0%} of each class of {self._base(found)}: there is no folder for it")
        else:
            check_unused(self.val_share, self.path)
        return Plan(
            classes=classes,
            splits={split: splits[split] for split in ROLES if split in splits},
            is_one_split=bool(self.split),
            is_listed=True,
            left_out=left_out.reasons,
            notes=tuple(notes),
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one file's bytes as they are.

        Raises:
            DataError: no image that can be read.
        """
        try:
            return file_bytes(self.path / item.name)
        except ValueError as error:
            raise DataError(f"{item.name}: {error}") from error

    def _folders(self, left_out: LeftOut) -> dict[str, Path]:
        """Return the folder of each split; of none in particular where they are to be split."""
        check_folder(self.path)
        if self.split:
            return {self.split: split_folder(self.path, self.split)}
        found = find_splits(self.path)
        if found:
            count_beside(self.path, self.path, left_out, used={*found.values()})
        return found or {"": self.path}

    def _base(self, found: dict[str, Path]) -> Path:
        """Return the folder whose folders are the classes: the training split's where there is one."""
        if self.split and found[self.split] != self.path:
            trained = [folder for folder in folders(self.path) if folder.name.lower() in ROLES["train"]]
            return trained[0] if trained else found[self.split]
        return found["train"] if "train" in found else next(iter(found.values()))

    def _items(self, folder: Path, classes: tuple[str, ...], left_out: LeftOut) -> tuple[Item, ...]:
        """List one split's images."""
        own = class_folders(folder)
        if unknown := sorted(set(own) - set(classes)):
            if self.classes:
                raise DataError(f"{folder}: the folder {unknown[0]!r} is none of the {len(classes)} classes "
                                f"({shown_classes(classes)}); rename it, or move it away")  # fmt: skip
            raise DataError(f"{folder}: class {unknown[0]!r} has no folder in the training split; add it, or move it")
        count_beside(folder, self.path, left_out, used={*own.values()})
        return tuple(
            Item(str(file.relative_to(self.path)), label, mark_of(file))
            for label, name in enumerate(classes)
            if name in own
            for file in image_files(own[name], self.path, left_out)
        )


def _check_classes(folder: Path, classes: tuple[str, ...], splits: dict[str, tuple[Item, ...]], *, named: bool) -> None:
    """Refuse classes that can't be learned."""
    labels = {split: {item.label for item in items} for split, items in splits.items()}
    trained = labels[""] if "" in labels else labels["train"]
    if len(trained) < 2:
        there = f"only {classes[next(iter(trained))]!r} has" if trained else "no class has"
        raise DataError(f"{folder}: {there} images; two classes at least are needed, at {folder}/CLASS/NAME.jpg")
    for split, used in labels.items():
        if (untrained := sorted(used - trained)) and not named:
            raise DataError(f"{folder}: class {classes[untrained[0]]!r} has images in {split}, but none for training")

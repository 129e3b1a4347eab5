"""The layout of an image folder: which files are samples, which folders are classes and which are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets.errors import DataError
from datasets.transforms.formats import arrays_beside_images, is_image_name

ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Split -> names of its folder, in any case."""
STATE_NAME = "prepare.json"
"""In a folder that shards are written to: what they are made from."""
ARRAY_BESIDE = "an array beside an image of its name"
_SYSTEM = frozenset(
    {
        *("__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
    }
)


@dataclass(slots=True)
class LeftOut:
    """Files that are no samples: by reason how many, and the first of them."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count files."""
        before, first = self.reasons.get(reason, (0, example))
        if count:
            self.reasons[reason] = (before + count, first)


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is hidden or an operating system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM


def check_folder(path: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: a file, or nothing there.
    """
    if not path.is_dir():
        raise DataError(f"{path}: {'a file; name its folder' if path.is_file() else 'no such folder'}")


def folders(path: Path) -> list[Path]:
    """Return the visible folders in a folder, links to folders among them."""
    with os.scandir(path) as entries:  # without a look at each of a million files
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def find_splits(path: Path) -> dict[str, Path]:
    """Return the folder of each split; nothing where the folders in `path` are the classes.

    A folder with the name of a split is one if it has folders in it. `PATH/train` and `PATH/val` or `PATH/test` are
    splits whatever else lies in PATH; `PATH/train` alone is one if nothing else does.

    Raises:
        DataError: what can only be a mistake: two folders of one split, splits without `train`, a split without class
            folders, or `train` next to folders that may be classes.
    """
    named = [(role, folder) for folder in folders(path) for role in ROLES if folder.name.lower() in ROLES[role]]
    others = [folder for folder in folders(path) if folder not in {folder for _, folder in named}]
    nested = {role: folder for role, folder in named if folders(folder)}
    if not nested:
        if named and not others:
            raise DataError(f"{named[0][1]}: no class folders in it; images must be at {named[0][1]}/CLASS/NAME.jpg")
        return {}
    roles = [role for role, _ in named]
    for role, folder in named:
        if roles.count(role) > 1:
            both = " and ".join(sorted(folder.name for other, folder in named if other == role))
            raise DataError(f"{path}: {both} are both the {role} split; join them, or move one away")
        if role not in nested and "train" in nested:
            raise DataError(f"{folder}: the {role} split has no class folders; fill it or remove it")
    if "train" not in nested:
        first = next(iter(nested.values()))
        raise DataError(f"{first}: a split without {path / 'train'} next to it; add that, or rename the folder")
    if len(nested) == 1 and (beside := [folder for folder in others if _has_images(folder)]):
        raise DataError(
            f"{path}: is train/ a split, or a class like {beside[0].name}/? Rename it, or move the other folders away"
        )
    return nested


def split_folder(path: Path, split: str) -> Path:
    """Return the folder of one split: `path` itself, where no split's folder lies in it.

    Raises:
        DataError: there are two for it, or only other splits' folders.
    """
    named = [(role, folder) for folder in folders(path) for role in ROLES if folder.name.lower() in ROLES[role]]
    nested = [(role, folder) for role, folder in named if folders(folder)]
    own = [folder for role, folder in nested if role == split]
    if len(own) > 1:
        raise DataError(
            f"{path}: {own[0].name} and {own[1].name} are both the {split} split; join them, or move one away"
        )
    if nested and not own:
        there = ", ".join(folder.name for _, folder in nested)
        raise DataError(f"{path}: no folder of the {split} split in it, only {there}; name the folder that is meant")
    return own[0] if own else path


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders of a split by name, in label order.

    Raises:
        DataError: there are none, or what lies in them are the splits.
    """
    found = {path.name: path for path in folders(folder)}
    if not found:
        raise DataError(f"{folder}: no class folders in it; images must be at {folder}/CLASS/NAME.jpg")
    below = [{path.name.lower() for path in folders(path)} for path in found.values()]
    splits = {name for names in ROLES.values() for name in names}
    if all(len(names) > 1 and names <= splits and names & {*ROLES["train"]} for names in below):
        raise DataError(f"{folder}: the splits are in the classes; move the images to {folder}/train/CLASS/NAME.jpg")
    return found


def image_files(folder: Path, root: Path, left_out: LeftOut) -> Iterator[Path]:
    """Yield the image files below a folder in order of their names, through links too; count what is left out.

    Args:
        folder: with images at any depth.
        root: that examples are named relative to.
        left_out: takes the files that are no samples.
    """
    real = folder.resolve()
    yield from _walk(folder, root, left_out, {real, *real.parents, *folder.absolute().parents})


def count_beside(path: Path, root: Path, left_out: LeftOut, *, used: set[Path]) -> None:
    """Count what is next to class or split folders: files, and folders that aren't used, but for shards made here."""
    for entry, is_folder in _entries(path):
        if is_hidden(entry.name):
            _count_hidden(entry, root, left_out)
        elif is_folder:
            if entry not in used and not (entry / STATE_NAME).is_file():
                unused = list(image_files(entry, root, left_out))
                left_out.add("next to the split folders", _name(entry, root), len(unused))
        elif _is_sample(entry, root, left_out):
            left_out.add("outside class folders", _name(entry, root))


def _walk(folder: Path, root: Path, left_out: LeftOut, above: set[Path]) -> Iterator[Path]:
    entries = _entries(folder)
    beside = arrays_beside_images(entry.name for entry, _ in entries)
    for entry, is_folder in entries:
        if is_hidden(entry.name):
            _count_hidden(entry, root, left_out)
        elif entry.name in beside:
            left_out.add(ARRAY_BESIDE, _name(entry, root))
        elif is_folder:
            real = entry.resolve()
            if real in above:
                left_out.add("a link to a folder that contains it", _name(entry, root))
            else:
                yield from _walk(entry, root, left_out, above | {real})
        elif _is_sample(entry, root, left_out):
            yield entry


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """Return what lies in a folder in order of names, and whether each is a folder or a link to one."""
    with os.scandir(folder) as entries:
        return sorted((Path(entry), entry.is_dir()) for entry in entries)


def _is_sample(file: Path, root: Path, left_out: LeftOut) -> bool:
    if not file.is_file():
        left_out.add("a broken link" if file.is_symlink() else "not a regular file", _name(file, root))
    elif not is_image_name(file.name):
        left_out.add(f"not an image: {file.suffix.lower() or 'without extension'}", _name(file, root))
    else:
        return True
    return False


def _count_hidden(entry: Path, root: Path, left_out: LeftOut) -> None:
    files = [Path(base, name) for base, _, names in os.walk(entry) for name in sorted(names)] or [entry]
    left_out.add("hidden or system files", _name(files[0], root), len(files))


def _has_images(folder: Path) -> bool:
    return next(image_files(folder, folder, LeftOut()), None) is not None


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))

"""A folder of images with all that lies beside samples on people's disks."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from tests.support.shards import image_of

NO_SAMPLES = {
    "hidden or system files": (
        *(".DS_Store", "train/Thumbs.db", "train/cat/desktop.ini", "train/cat/._cat-0.png"),
        *("train/cat/.ipynb_checkpoints/cat-0-checkpoint.png", "train/dog/.trash/deep/old.png"),
        *("train/@eaDir/SYNOPHOTO.jpg", "__MACOSX/train/cat/._cat-1.png", "val/cat/@eaDir/x/y.jpg"),
    ),
    "not an image: .txt": ("train/cat/notes.txt", "readme.txt"),
    "not an image: .heic": ("val/dog/photo.heic",),
    "not an image: without extension": ("train/LICENCE",),
    "outside class folders": ("train/stray.png", "cover.png"),
    "next to the split folders": ("unlabelled/more/a.png", "unlabelled/b.png"),
    "a broken link": ("train/dog/gone.png",),
    "a link to a folder that contains it": ("train/dog/again",),
    "broken": ("train/cat/empty.png", "val/dog/cut.jpg", "train/dog/zz.gif"),
}
"""Reason in the data report -> what lies there for it."""
SPLITS = {"train": 6, "val": 3, "test": 2}
"""Images of each of two classes."""


def picture(number: int, kind: str = "PNG", **options: object) -> bytes:
    """An image that differs for every number."""
    stream = io.BytesIO()
    Image.fromarray(image_of(1, number)).save(stream, kind, **options)
    return stream.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def class_tree(folder: Path, counts: dict[str, int], *, first: int = 0) -> Path:
    """Class folders with so many images each, all different."""
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            put(folder / name / f"{name}-{number}.png", picture(first + label * 1000 + number))
    return folder


def odd_folder(folder: Path) -> Path:
    """`SPLITS` with two classes of good images, an empty class, a linked one, and everything of `NO_SAMPLES`."""
    for place, (split, count) in enumerate(SPLITS.items()):
        class_tree(folder / split, {"cat": count, "dog": count}, first=place * 10_000)
    (folder / "train" / "newt").mkdir()
    for names in NO_SAMPLES.values():
        for number, name in enumerate(names):
            put(folder / name, picture(90_000 + number))
    put(folder / "train/cat/empty.png", b"")
    put(folder / "val/dog/cut.jpg", picture(1, "JPEG")[:300])
    put(folder / "train/dog/zz.gif", b"GIF89a")
    for name, target in (("gone.png", "nowhere.png"), ("again", "..")):
        (folder / "train/dog" / name).unlink()
        (folder / "train/dog" / name).symlink_to(target)
    outside = class_tree(folder.parent / "outside", {"cats": 2}, first=70_000)
    (folder / "train/cat/linked").symlink_to(outside / "cats")
    put(folder / "val/cat/twin.png", picture(0))  # also train/cat/cat-0.png
    put(folder / "test/dog/liar.png", picture(1))  # also train/cat/cat-1.png
    return folder

"""Tiny sets, laid out as torchvision's downloads are."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.prepared import SIDE, numbered, png


def write(path: Path, data: bytes | str) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def md5(path: Path) -> str:
    """Return what torchvision checks of a file."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def mnist(root: Path) -> None:
    """20 and 6 images as idx files, number modulo 10 the class."""
    for split, numbers in ("train", range(20)), ("t10k", range(20, 26)):
        pixels = np.stack([np.full((28, 28), 3 * number, np.uint8) for number in numbers])
        sizes = b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        labels = bytes(number % 10 for number in numbers)
        write(root / f"MNIST/raw/{split}-images-idx3-ubyte", b"\0\0\x08\x03" + sizes + pixels.tobytes())
        header = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big")
        write(root / f"MNIST/raw/{split}-labels-idx1-ubyte", header + labels)


def cifar10(root: Path) -> dict[str, list[list[str]]]:
    """Six batches and the names of the classes; return the lists of files with their checksums."""
    folder = root / "cifar-10-batches-py"
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for batch, name in enumerate(batches):
        numbers = range(4 * batch, 4 * batch + 4)
        pixels = np.stack([np.full(3 * 32 * 32, 3 * number, np.uint8) for number in numbers])
        write(folder / name, pickle.dumps({"data": pixels, "labels": [number % 2 for number in numbers]}))
    write(folder / "batches.meta", pickle.dumps({"label_names": ["airplane", "bird"]}))
    listed = [[name, md5(folder / name)] for name in batches]
    return {"train_list": listed[:5], "test_list": listed[5:]}


def eurosat(root: Path) -> None:
    """Two classes of ten."""
    for number in range(20):
        write(root / "eurosat/2750" / ("Forest", "River")[number % 2] / f"{number}.png", numbered(number))


def dtd(root: Path) -> None:
    """Two classes of four in each of the three splits."""
    for split, first in ("train", 0), ("val", 8), ("test", 16):
        names = [f"{('banded', 'dotted')[number % 2]}/{number}.png" for number in range(first, first + 8)]
        write(root / f"dtd/dtd/labels/{split}1.txt", "\n".join(names))
        for number, name in enumerate(names, start=first):
            write(root / "dtd/dtd/images" / name, numbered(number))


def gtsrb(root: Path) -> None:
    """Two signs of ten, and six for the test."""
    folder = root / "gtsrb"
    lines = ["Filename;Width;Height;ClassId"]
    for number in range(26):
        name = f"{number:05d}.ppm"
        path = folder / "GTSRB" / (f"Training/{number % 2:05d}" if number < 20 else "Final_Test/Images") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), 3 * number, np.uint8)).save(path)
        lines += [f"{name};16;16;{number % 2}"] if number >= 20 else []
    write(folder / "GT-final_test.csv", "\n".join(lines))


def caltech101(root: Path) -> None:
    """Two categories of ten."""
    for number in range(20):
        name = f"{('ant', 'bass')[number % 2]}/image_{number // 2 + 1:04d}.jpg"
        write(root / "caltech101/101_ObjectCategories" / name, numbered(number))
    for folder in "101_ObjectCategories/BACKGROUND_Google", "Annotations":
        (root / "caltech101" / folder).mkdir()


def pets(root: Path) -> None:
    """Two breeds; the trimap's rows are pet, background and edge."""
    folder = root / "oxford-iiit-pet"
    trimap = np.array([1, 2, 3, 1] * (SIDE // 4), np.uint8)[:, None].repeat(SIDE, axis=1)
    for split, numbers in ("trainval", range(20)), ("test", range(20, 26)):
        lines = [f"{('Sphynx', 'beagle')[number % 2]}_{number} {number % 2 + 1} 1 1" for number in numbers]
        write(folder / f"annotations/{split}.txt", "\n".join(lines))
        for number, line in zip(numbers, lines, strict=True):
            write(folder / "images" / f"{line.split()[0]}.jpg", numbered(number))
            write(folder / "annotations/trimaps" / f"{line.split()[0]}.png", png(trimap))


def voc(root: Path) -> None:
    """Images of the class that is their number, in the middle; their edge is 255."""
    folder = root / "VOCdevkit/VOC2012"
    for split, numbers in ("train", range(8)), ("val", range(8, 14)):
        write(folder / f"ImageSets/Segmentation/{split}.txt", "\n".join(f"2007_{number:06d}" for number in numbers))
        for number in numbers:
            mask = Image.fromarray(np.pad(np.full((SIDE - 2, SIDE - 2), number, np.uint8), 1, constant_values=255))
            mask.putpalette([shade for value in range(256) for shade in (value, 255 - value, 7)])
            write(folder / f"JPEGImages/2007_{number:06d}.jpg", numbered(number))
            path = folder / f"SegmentationClass/2007_{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)

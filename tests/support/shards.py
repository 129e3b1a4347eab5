"""Small real pictures and shards for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset as wds
from PIL import Image

from datasets.files.s3 import RemoteFile
from datasets.shards.describe import describe, write_manifest
from datasets.shards.manifest import manifest_version, save_manifest
from datasets.shards.resolve import load_manifest


def image_of(label: int, number: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture that differs for every number: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / (5 + label) + number), np.cos(y / 7 + number * 2), np.sin((x + y) / 9 + label)]
    return np.ascontiguousarray((np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8))


def write_shards(
    folder: Path, counts: list[int], *, classes: int = 4, first_label: int = 0, labels: bool = True
) -> Path:
    """Shards with `counts` images of 48x64 px, labels 0, 1, 2, ... in turn, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    number, names = 0, []
    for index, count in enumerate(counts):
        path = folder / f"part-{index:06d}.tar"
        with wds.TarWriter(str(path), mtime=0) as tar:
            for _ in range(count):
                label = number % classes + first_label
                sample = {"__key__": f"{number:08d}", "jpg": simplejpeg.encode_jpeg(image_of(label, number))}
                tar.write({**sample, "cls": label} if labels else sample)
                number += 1
        names.append(path.name)
    write_manifest(folder, names, classes=[f"class {label}" for label in range(classes)])
    return folder


def index_again(folder: Path) -> None:
    """Index a folder's shards of 4 classes again, with label 3 - L where it was L."""
    manifest = load_manifest(str(folder))
    index = np.load(manifest.shards[0].index_url)
    index["label"] = 3 - index["label"]
    rows = np.split(index, [shard.first_row for shard in manifest.shards][1:])
    files = [RemoteFile(shard.url, shard.num_bytes, "") for shard in manifest.shards]
    again = describe(files, rows, classes=manifest.classes, kind=manifest.kind, source={})
    save_manifest(folder, again, rows, version=manifest_version(folder))


def mask_of(label: int, number: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """A mask of classes 0 to 2 that follows the picture's first channel: uint8 [H, W]."""
    return (image_of(label, number, height=height, width=width)[..., 0] // 86).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Encode as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_mask_shards(folder: Path, counts: list[int]) -> Path:
    """Segmentation shards with `counts` PNG images of 48x64 px, their masks of 3 classes, and their manifest."""

    def sample(number: int) -> dict[str, object]:
        return {"png": png(image_of(1, number)), "mask.png": png(mask_of(1, number))}

    return write_samples(folder, counts, sample, classes=["low", "middle", "high"], kind="segmentation")


def write_multilabel_shards(folder: Path, counts: list[int]) -> Path:
    """Multi-label shards with `counts` images of 48x64 px of the classes of `labels_of`, and their manifest."""

    def sample(number: int) -> dict[str, object]:
        labels = labels_of(number)
        image = simplejpeg.encode_jpeg(multilabel_image(labels, number), quality=95)
        return {"jpg": image, "labels": " ".join(map(str, labels)).encode()}

    return write_samples(folder, counts, sample, classes=["stripes", "spots", "waves"], kind="multilabel")


def write_rare_shards(folder: Path, counts: list[int], *, masks: bool = False) -> Path:
    """Shards with `counts` images of 48x64 px, of every 40 samples 35 usual, 4 rare and 1 rarest; their manifest.

    With `masks` each has one as well, and its label is what it is sampled by.
    """

    def sample(number: int) -> dict[str, object]:
        label = 2 if number % 40 == 7 else int(number % 10 == 3)
        truth = {"mask.png": png(np.full((48, 64), label, np.uint8))} if masks else {}
        return {"jpg": simplejpeg.encode_jpeg(image_of(label, number)), "cls": str(label).encode(), **truth}

    kind = "segmentation" if masks else "classification"
    return write_samples(folder, counts, sample, classes=["usual", "rare", "rarest"], kind=kind)


def write_target_shards(folder: Path, counts: list[int]) -> Path:
    """Shards with `counts` images of 48x64 px and the two numbers of `targets_of`, and their manifest."""

    def sample(number: int) -> dict[str, bytes]:
        image = simplejpeg.encode_jpeg(target_image(number), quality=95)
        return {"jpg": image, "targets": " ".join(map(repr, targets_of(number))).encode()}

    return write_samples(folder, counts, sample, classes=["light", "height"], kind="regression")


def targets_of(number: int) -> tuple[float, float]:
    """The numbers of a sample of `write_target_shards`: of very different size."""
    return 0.01 * (number * 7 % 11), 1000.0 + 500 * (number * 3 % 8)


def target_image(number: int) -> np.ndarray:
    """A picture as bright as its first number says, with a bar as high as the second: uint8 [48, 64, 3]."""
    light, height = targets_of(number)
    image = np.full((48, 64, 3), 40 + round(1600 * light), dtype=np.uint8)
    image[: round(48 * (height - 1000) / 4000), :, 0] = 0
    return image


def multilabel_image(labels: tuple[int, ...], number: int) -> np.ndarray:
    """A picture whose channel K has a pattern if it is of class K, else is grey: uint8 [48, 64, 3]."""
    image = image_of(1, number)
    image[..., [k for k in range(3) if k not in labels]] = 128
    return image


def write_samples(
    folder: Path,
    counts: list[int],
    sample: Callable[[int], dict[str, object]],
    *,
    classes: list[str],
    kind: str = "classification",
    source: dict[str, Any] | None = None,
) -> Path:
    """Write shards of `counts` samples, each by its number, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    number, names = 0, []
    for index, count in enumerate(counts):
        names.append(f"part-{index:06d}.tar")
        with wds.TarWriter(str(folder / names[-1]), mtime=0) as tar:
            for _ in range(count):
                tar.write({"__key__": f"{number:08d}", **sample(number)})
                number += 1
    write_manifest(folder, names, classes=classes, kind=kind, source=source)
    return folder


def labels_of(number: int) -> tuple[int, ...]:
    """The classes of a sample of `write_multilabel_shards`: every subset of the three in turn, none as well."""
    return tuple(label for label in range(3) if number >> label & 1)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_damaged_shards(folder: Path, damaged: set[int], count: int = 60) -> Path:
    """Two shards with `count` images of 48x64 px of 4 classes, cut in half where they are `damaged`; their manifest."""
    folder.mkdir(parents=True)
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(shard * count // 2, (shard + 1) * count // 2):
            data = simplejpeg.encode_jpeg(image_of(1, number))
            members[f"{number:04d}.jpg"] = data[: len(data) // 2] if number in damaged else data
            members[f"{number:04d}.cls"] = str(number % 4).encode()
        write_tar(folder / f"s-{shard}.tar", members)
    write_manifest(folder, ["s-0.tar", "s-1.tar"], classes=[f"class {label}" for label in range(4)])
    return folder

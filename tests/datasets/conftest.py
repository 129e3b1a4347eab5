"""Small real shards for the tests of datasets/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset as wds

from datasets.shards import write_manifest

MakeShards = Callable[..., Path]


def image_of(label: int, number: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture that differs for every number: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / (5 + label) + number), np.cos(y / 7 + number * 2), np.sin((x + y) / 9 + label)]
    return np.ascontiguousarray((np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8))


def write_folder(
    folder: Path, counts: list[int], *, classes: int = 4, sizes: tuple[int, int] = (48, 64), unlabelled: bool = False
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    number, names = 0, []
    for index, count in enumerate(counts):
        path = folder / f"part-{index:06d}.tar"
        with wds.TarWriter(str(path), mtime=0) as tar:
            for _ in range(count):
                label = number % classes
                sample = {
                    "__key__": f"{number:08d}",
                    "jpg": simplejpeg.encode_jpeg(image_of(label, number, height=sizes[0], width=sizes[1])),
                }
                tar.write(sample if unlabelled else {**sample, "cls": label})
                number += 1
        names.append(path.name)
    write_manifest(folder, names, classes=[f"class {label}" for label in range(classes)])
    return folder


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three uneven shards, 137 labelled images."""
    return write_folder(tmp_path_factory.mktemp("shards"), [50, 64, 23])

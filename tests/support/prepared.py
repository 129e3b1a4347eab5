"""Runs `jobs.prepare` in this process, and reads what it wrote as an evaluation does."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.config import DataConfig
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader
from jobs.prepare import main

SIDE = 16
"""Of the images, in pixels."""


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels, uint8 [H, W] or [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def numbered(number: int) -> bytes:
    """Return an image whose shade is 3 times its number."""
    return png(np.full((SIDE, SIDE, 3), 3 * number, np.uint8))


def prepared(out: Path, source: str, *flags: str) -> dict[str, Batch]:
    """Prepare; return all samples of each split as they are evaluated."""
    assert main([source, *flags, "--out", str(out), "--workers", "1"]) == 0
    found: dict[str, Batch] = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        config = DataConfig(train=str(folder), val=str(folder), eval_crop="whole", loader_workers=0)
        loader = build_eval_loader(config, image_size=SIDE, batch_size=100, rank=0, world_size=1)
        found[folder.name] = next(iter(loader))
    return found


def by_number(batch: Batch) -> dict[int, object]:
    """Return the labels of each image by its number, which its shade tells."""
    return {int(image[0, 0, 0]) // 3: label.tolist() for image, label in zip(batch.images, batch.labels, strict=True)}

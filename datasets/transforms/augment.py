"""Augmentation of images with their masks: flips and RandAugment, from random numbers that are drawn beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.transforms.randaugment_ops import GEOMETRIC, OPERATIONS

FULL_MAGNITUDE = 10.0
"""The magnitude at which every operation has its full range; larger magnitudes extrapolate."""
DRAWS_PER_LAYER = 2
"""Random numbers that one layer of RandAugment takes."""

_NAMES = tuple(OPERATIONS)


def rand_augment(
    images: np.ndarray, masks: np.ndarray | None, draws: Sequence[Sequence[float]], *, magnitude: float
) -> None:
    """Augment images with their masks in place, each by operations of its own; each as it would be alone.

    What moves pixels moves the mask's with them, by nearest neighbour; what comes in from outside is `MASK_IGNORE`.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        masks: of the images, uint8 [B, H, W], or None.
        draws: for each image numbers in [0, 1), `DRAWS_PER_LAYER` for each operation.
        magnitude: on the paper's scale; 0: nothing is done.
    """
    if magnitude <= 0:
        return
    strength = magnitude / FULL_MAGNITUDE
    for layer in range(0, len(draws[0]), DRAWS_PER_LAYER):
        picks = [int(row[layer] * len(_NAMES)) for row in draws]
        # Operation by operation: its code and its buffers stay in the processor's cache.
        for image in sorted(range(len(images)), key=picks.__getitem__):
            name, sign = _NAMES[picks[image]], 1.0 if draws[image][layer + 1] < 0.5 else -1.0
            if name != "identity":
                images[image] = OPERATIONS[name](images[image], strength, sign)
            if masks is not None and name in GEOMETRIC:
                masks[image] = OPERATIONS[name](masks[image], strength, sign)


def random_flip_pair(pixels: np.ndarray, mask: np.ndarray | None, draw: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Mirror an image and its mask, uint8 [H, W, 3] and [H, W], together where `draw` in [0, 1) is below a half."""
    if draw >= 0.5:
        return pixels, mask
    # PyTorch's mirrored copy is ten times faster than NumPy's.
    mirrored = torch.from_numpy(pixels).flip(1).numpy()
    return mirrored, None if mask is None else np.ascontiguousarray(mask[:, ::-1])

"""Augmentation of one image, with its mask: flips and RandAugment, from random numbers that are drawn beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.operations import GEOMETRIC, OPERATIONS

FULL_MAGNITUDE = 10.0
"""The magnitude at which every operation has its full range; larger magnitudes extrapolate."""
DRAWS_PER_LAYER = 2
"""Random numbers that one layer of RandAugment takes."""

_NAMES = tuple(OPERATIONS)


def rand_augment(pixels: np.ndarray, draws: Sequence[float], *, magnitude: float) -> np.ndarray:
    """Apply a random operation for each two draws to uint8 [H, W, 3], each at the paper's `magnitude`; 0: none."""
    return rand_augment_pair(pixels, None, draws, magnitude=magnitude)[0]


def rand_augment_pair(
    pixels: np.ndarray, mask: np.ndarray | None, draws: Sequence[float], *, magnitude: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Augment an image with its mask, uint8 [H, W, 3] and [H, W]; the image becomes what it becomes without a mask.

    What moves pixels moves the mask's with them, by nearest neighbour; what comes in from outside is `MASK_IGNORE`.

    Args:
        pixels: contiguous.
        mask: of the image, or None.
        draws: in [0, 1), `DRAWS_PER_LAYER` for each operation.
        magnitude: on the paper's scale.
    """
    if magnitude <= 0:
        return pixels, mask
    strength = magnitude / FULL_MAGNITUDE
    for pick, side in zip(draws[::2], draws[1::2], strict=True):
        name = _NAMES[int(pick * len(_NAMES))]
        sign = 1.0 if side < 0.5 else -1.0
        pixels = OPERATIONS[name](pixels, strength, sign)
        if mask is not None and name in GEOMETRIC:
            mask = OPERATIONS[name](mask, strength, sign)
    return pixels, mask


def random_flip_pair(pixels: np.ndarray, mask: np.ndarray | None, draw: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Mirror an image and its mask, uint8 [H, W, 3] and [H, W], together where `draw` in [0, 1) is below a half."""
    if draw >= 0.5:
        return pixels, mask
    # PyTorch's mirrored copy is ten times faster than NumPy's.
    mirrored = torch.from_numpy(pixels).flip(1).numpy()
    return mirrored, None if mask is None else np.ascontiguousarray(mask[:, ::-1])

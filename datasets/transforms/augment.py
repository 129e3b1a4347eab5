"""Augmentation of images with their masks: flips and RandAugment, from random numbers that are drawn beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.transforms.randaugment_policies import FULL_MAGNITUDE, MASKED, Amount, Policy


def rand_augment(
    images: np.ndarray,
    masks: np.ndarray | None,
    draws: Sequence[Sequence[float]],
    *,
    policy: Policy,
    magnitude: float,
) -> None:
    """Augment images with their masks in place, each by operations of its own; each as it would be alone.

    What moves or blanks pixels does so to the mask's, by nearest neighbour; where nothing of the image is left, the
    mask is `IGNORED`.

    Args:
        images: uint8 [B, H, W, 3] or, by a policy for any pixels, float32 [B, H, W, C]; contiguous.
        masks: of the images, uint8 [B, H, W], or None.
        draws: for each image numbers in [0, 1), `policy.draws_per_layer` for each operation.
        policy: which operations there are.
        magnitude: on the policy's scale; 0: nothing is done.
    """
    if magnitude <= 0:
        return
    strength, names = magnitude / FULL_MAGNITUDE, tuple(policy.operations)
    for layer in range(0, len(draws[0]), policy.draws_per_layer):
        picks = [int(row[layer] * len(names)) for row in draws]
        # Operation by operation: its code and its buffers stay in the processor's cache.
        for image in sorted(range(len(images)), key=picks.__getitem__):
            name, (sign, *place) = names[picks[image]], draws[image][layer + 1 : layer + policy.draws_per_layer]
            amount = Amount(strength, 1.0 if sign < 0.5 else -1.0, *place)
            if name != "identity":
                images[image] = policy.operations[name](images[image], amount)
            if masks is not None and name in MASKED:
                masks[image] = policy.operations[name](masks[image], amount)


def random_flip_pair(pixels: np.ndarray, mask: np.ndarray | None, draw: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Mirror an image and its mask, [H, W, C] and uint8 [H, W], together where `draw` in [0, 1) is below a half."""
    if draw >= 0.5:
        return pixels, mask
    # PyTorch's mirrored copy is ten times faster than NumPy's.
    mirrored = torch.from_numpy(pixels).flip(1).numpy()
    return mirrored, None if mask is None else np.ascontiguousarray(mask[:, ::-1])

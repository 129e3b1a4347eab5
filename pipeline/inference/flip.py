"""Test-time augmentation by mirroring: the mean of the logits of an image and of its mirror image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn


class FlipAveraged(nn.Module):
    """A model of images [B, 3, H, W] that is run on them and on their mirror images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits [B, K] or, mirrored back, [B, K, H, W]."""
        mirrored = self.model(images.flip(-1))
        return (self.model(images) + (mirrored.flip(-1) if mirrored.ndim == 4 else mirrored)) / 2


def flip_averaged(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the same of a function from images, uint8 [B, 3, H, W], to logits."""

    def both(images: np.ndarray) -> np.ndarray:
        mirrored = run(np.ascontiguousarray(images[..., ::-1]))
        return (run(images) + (mirrored[..., ::-1] if mirrored.ndim == 4 else mirrored)) / 2

    return both

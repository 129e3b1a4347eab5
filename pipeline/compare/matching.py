"""The model of another family with the nearest cost, by counted multiply-adds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import ModelConfig, swin_stride
from model.cost import multiply_adds
from model.libraries import TORCHVISION


@dataclass(frozen=True, slots=True)
class Match:
    """The model that was found."""

    name: str
    stride: int
    """Image sizes must be multiples of it."""
    ratio: float
    """Its multiply-adds over the other's, both at the last size."""

    def whole(self, size: int) -> int:
        """Return the multiple of the stride that is nearest to a size, in pixels."""
        return max(1, round(size / self.stride)) * self.stride


def nearest_swin(model: ModelConfig, image_size: int) -> Match:
    """Return the Swin whose multiply-adds are nearest to a model's, in their logarithm."""
    found = []
    for name in TORCHVISION:
        if name.startswith("swin"):
            stride = swin_stride(name)
            size = max(1, round(image_size / stride)) * stride
            swin = ModelConfig(name=name, stochastic_depth=model.stochastic_depth, in_channels=model.in_channels)
            ratio = multiply_adds(swin, size) / multiply_adds(model, size)
            found.append(Match(name, stride, ratio))
    return min(found, key=lambda match: abs(math.log(match.ratio)))

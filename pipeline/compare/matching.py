"""The model of another family with the nearest cost, by counted multiply-adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

from model.config import ModelConfig, swin_stride
from model.cost import count_multiply_adds
from model.factory import build_model
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


@cache
def multiply_adds(model: ModelConfig, image_size: int, *, num_classes: int = 10) -> int:
    """Return a model's multiply-adds for one image of this side."""
    with torch.device("meta"):
        built = build_model(model, num_classes=num_classes)
        return count_multiply_adds(built, image_size, in_channels=model.in_channels)

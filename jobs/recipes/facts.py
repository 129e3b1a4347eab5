"""What a generic recipe follows from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from datasets.config import MAX_RATIO
from datasets.transforms.formats import PixelFormat, PixelType


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a generic recipe follows from. The same facts give the same config."""

    samples: int = 10_000
    """Training images."""
    classes: int = 10
    """Classes."""
    short_side: int = 256
    """Short side of the images in pixels: nine of ten of those that were looked at have at least this one."""
    aspect_ratio: float = 1.0
    """Width / height that nine of ten of these images have, within a tenth; 1: they are of several shapes, or nearly
    square."""
    cpus: int = 2
    """CPU cores."""
    gpus: int = 0
    """GPUs."""
    gpu_memory: float = 0.0
    """Memory of a GPU in GB (10^9 bytes)."""
    pixel_type: PixelType = "rgb"
    """What the images' pixels are (`data.pixel_type`)."""
    channels: int = 3
    """Channels of an image."""

    def __post_init__(self) -> None:
        lows = {"samples": 1, "classes": 1, "short_side": 1, "cpus": 1, "gpus": 0, "gpu_memory": 0, "channels": 1}
        for name, low in lows.items():
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"{name.replace('_', '-')} is {getattr(self, name)}: it must be at least {low}")
        if not 1 / MAX_RATIO <= self.aspect_ratio <= MAX_RATIO:
            raise ValueError(f"aspect-ratio is {self.aspect_ratio}: it must be from {1 / MAX_RATIO:g} to {MAX_RATIO:g}")
        if self.pixel_type not in get_args(PixelType):
            raise ValueError(f"pixel-type is {self.pixel_type!r}: it must be one of {', '.join(get_args(PixelType))}")
        if self.pixel_type == "rgb" and self.channels != 3:
            raise ValueError(f"channels is {self.channels} and pixel-type rgb, which has 3: name both")

    @property
    def pixels(self) -> PixelFormat:
        """What the images' pixels are."""
        return PixelFormat(self.pixel_type, self.channels)

    @property
    def stretch(self) -> float:
        """How many times longer than the short side the input's long side is."""
        return max(self.aspect_ratio, 1 / self.aspect_ratio)

"""From an image's bytes to the model's input: the same for evaluation, exported models and predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from datasets.config import EvalCrop
from datasets.transforms.decode import Box, decode_crop, decode_whole, eval_crop, image_header, takes_whole
from datasets.transforms.formats import PixelFormat, PixelType
from datasets.transforms.pixels import MAX_PIXELS, Header
from datasets.transforms.shape import Shape, format_size, image_shape

PIXEL_RULES = {
    "orientation": "EXIF's, applied to JPEG, PNG, WebP, AVIF and TIFF before anything else",
    "transparency": "composed onto white",
    "depth": "16 bits a channel: the upper 8; 32-bit grey from 0 to 65535 as 16 bits; float grey from 0 to 1 times "
    "255, rounded; other values are refused",
    "colour": "grey, palette, CMYK and YCbCr as RGB, without colour profiles; the first frame or page",
}
"""What the decoder does to an image before it is cropped, for whoever rebuilds it elsewhere."""
VALUE_RULES = {
    "orientation": "none: an image that is stored turned is refused",
    "transparency": "none: a channel as any other",
    "depth": "none: values as they are stored, of the type pixel_type; an image of another type is refused",
    "colour": "none: channels as they are stored; the first page",
}
"""The same of values that are read as they are stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image becomes the model's input."""

    image_size: int
    """Short side of the input in pixels."""
    eval_crop: EvalCrop
    """Which part of the image is looked at (`DataConfig.eval_crop`)."""
    pixel_mean: float
    """Subtracted from each value from 0 to 255, of every channel."""
    pixel_std: float
    """Each value is divided by this."""
    pixel_type: PixelType = "rgb"
    """What an image's pixels are (`DataConfig.pixel_type`)."""
    channels: int = 3
    """Channels of the input."""
    aspect_ratio: float = 1.0
    """Width / height of the input (`DataConfig.aspect_ratio`)."""
    channel_mean: tuple[float, ...] = ()
    """Subtracted from each channel's values, in place of `pixel_mean`; empty: that."""
    channel_std: tuple[float, ...] = ()
    """Each channel's values are divided by this, in place of `pixel_std`."""

    @property
    def format(self) -> PixelFormat:
        """What an image's pixels are."""
        return PixelFormat(self.pixel_type, self.channels)

    @property
    def shape(self) -> Shape:
        """Height and width of the input, in pixels."""
        return image_shape(self.image_size, self.aspect_ratio)

    @property
    def size_text(self) -> str:
        """The input's size as it is shown: `128`, or width x height."""
        return format_size(self.image_size, self.aspect_ratio)

    @property
    def dtype(self) -> type[np.generic]:
        """Of the model's input."""
        return np.uint8 if self.format.is_rgb else np.float32

    @property
    def normalization(self) -> dict[str, Any]:
        """Mean and deviation, as `TrainerConfig` names them."""
        return {name: getattr(self, name) for name in ("pixel_mean", "pixel_std", "channel_mean", "channel_std")}

    def whole(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Return a whole image, not resized: uint8 [H, W, 3], or float32 [H, W, C] of other pixels than RGB.

        Raises:
            ValueError: the image is corrupt, larger than `max_pixels`, or holds other pixels.
        """
        return decode_whole(data, self.format, max_pixels=max_pixels)

    def pixels(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Header, Box]:
        """Return RGB uint8 [H, W, 3] of `shape`, and the image's header and the part of it that this is.

        Of other pixels than RGB it is float32 [H, W, C].

        Raises:
            ValueError: the image is corrupt or larger than `max_pixels`.
        """
        header = image_header(data, self.format, max_pixels=max_pixels)
        box = eval_crop(header, self.shape, rule=self.eval_crop)
        return decode_crop(data, header, box, self.shape, self.format), header, box

    def facts(self) -> dict[str, Any]:
        """Return JSON values from which people and `from_facts` know what to do."""
        central = not takes_whole(self.image_size, self.eval_crop)
        rules = PIXEL_RULES if self.format.is_rgb else VALUE_RULES
        height, width = self.shape
        return asdict(self) | {
            "height": height,
            "width": width,
            "crop_fraction": self.image_size / (self.image_size + 32) if central else 1.0,
            "crop": "crop_fraction of the largest central part of the input's width : height"
            if central
            else "none: the whole image",
            "crop_rounding": "of an image of H x W: h = max(1, int(crop_fraction * min(H, W * height / width))), "
            "w = max(1, int(crop_fraction * min(W, H * width / height))), top = (H - h) // 2, left = (W - w) // 2",
            **rules,
            "resize": "bilinear, antialiased, to height x width; the aspect ratio is not kept; on "
            f"{self.dtype.__name__}, as torch.nn.functional.interpolate does it",
            "interpolation": "bilinear",
            "antialias": True,
            "align_corners": False,
            "order": "orientation, transparency and depth, crop, resize, then the model",
            "channel_order": "RGB" if self.format.is_rgb else "as stored",
            "layout": "NCHW",
            "input": "uint8, 0 to 255; mean and std are applied inside the model"
            if self.format.is_rgb
            else f"float32, {self.channels} channels of {self.pixel_type} values as they are stored; mean and std are "
            "applied inside the model",
            "normalization": "(value - channel_mean) / channel_std"
            if self.channel_mean
            else "(value - pixel_mean) / pixel_std, the same for each channel",
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Preprocessing:
        """Read what `facts` wrote."""
        names = {field.name for field in fields(cls)} & facts.keys()  # older files say nothing of channels
        values: dict[str, Any] = {name: facts[name] for name in names}
        values |= {name: tuple(values[name]) for name in ("channel_mean", "channel_std") if name in values}
        return cls(**values)

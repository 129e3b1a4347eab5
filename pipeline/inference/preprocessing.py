"""From an image's bytes to the model's input: the same for evaluation, exported models and predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datasets.config import EvalCrop
from datasets.transforms.decode import MAX_PIXELS, Box, Header, decode_crop, eval_crop, read_header

PIXEL_RULES = {
    "orientation": "EXIF's, applied to JPEG, PNG, WebP, AVIF and TIFF before anything else",
    "transparency": "composed onto white",
    "depth": "16 bits a channel: the upper 8; 32-bit grey from 0 to 65535 as 16 bits; float grey from 0 to 1 times "
    "255, rounded; other values are refused",
    "colour": "grey, palette, CMYK and YCbCr as RGB, without colour profiles; the first frame or page",
}
"""What the decoder does to an image before it is cropped, for whoever rebuilds it elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image becomes the model's input."""

    image_size: int
    """Side of the square input in pixels."""
    eval_crop: EvalCrop
    """Which part of the image is looked at (`DataConfig.eval_crop`)."""
    pixel_mean: float
    """Subtracted from each value from 0 to 255, of every channel."""
    pixel_std: float
    """Each value is divided by this."""

    def pixels(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Header, Box]:
        """Return RGB uint8 [image_size, image_size, 3], and the image's header and the part of it that this is.

        Raises:
            ValueError: the image is corrupt or larger than `max_pixels`.
        """
        header = read_header(data, max_pixels=max_pixels)
        box = eval_crop(header, self.image_size, rule=self.eval_crop)
        return decode_crop(data, header, box, self.image_size), header, box

    def facts(self) -> dict[str, Any]:
        """Return JSON values from which people and `from_facts` know what to do."""
        central = eval_crop(Header(10**6, 10**6, False), self.image_size, rule=self.eval_crop)[2] < 10**6
        return asdict(self) | {
            "crop_fraction": self.image_size / (self.image_size + 32) if central else 1.0,
            "crop": "central square of crop_fraction of the short side" if central else "none: the whole image",
            "crop_rounding": "side = max(1, int(crop_fraction * min(height, width))), top = (height - side) // 2, "
            "left = (width - side) // 2",
            **PIXEL_RULES,
            "resize": "bilinear, antialiased, to a square of image_size; the aspect ratio is not kept; on uint8, as "
            "torch.nn.functional.interpolate does it",
            "interpolation": "bilinear",
            "antialias": True,
            "align_corners": False,
            "order": "orientation, transparency and depth, crop, resize, then the model",
            "channel_order": "RGB",
            "layout": "NCHW",
            "input": "uint8, 0 to 255; mean and std are applied inside the model",
            "normalization": "(value - pixel_mean) / pixel_std, the same for each channel",
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Preprocessing:
        """Read what `facts` wrote."""
        return cls(**{name: facts[name] for name in ("image_size", "eval_crop", "pixel_mean", "pixel_std")})

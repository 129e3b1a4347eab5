"""Low-frequency cropping: smaller images that keep the centre of their Fourier spectrum (arXiv 2405.08768)."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.transforms.shape import Shape

_AT_ONCE_ON_GPU = 64
"""Images whose spectra are in memory together: a spectrum takes 8 times the memory of its image."""


def low_frequency(images: Tensor, shape: Shape) -> Tensor:
    """Return images [B, C, H, W] as float32 [B, C, h, w] of this shape that hold the lowest h x w frequencies of each.

    Unlike resizing, which averages over areas, it keeps all that a grid of this size can hold, unweakened. Means stay,
    and values of uint8 images are clamped to 0 to 255. Pixel (i, j) lies where pixel (i H / h, j W / w) lay.
    """
    # On a CPU one by one: in the rounding of MKL's transform it matters which other images are in the batch.
    at_once = _AT_ONCE_ON_GPU if images.is_cuda else 1
    small = torch.cat([_low_frequency(part.float(), shape) for part in images.split(at_once)])
    return small.clamp_(0.0, 255.0) if images.dtype == torch.uint8 else small


def _low_frequency(images: Tensor, shape: Shape) -> Tensor:
    (height, width), (h, w) = images.shape[-2:], shape
    # Where frequency 0 is in the middle, it is at H // 2 and W // 2.
    top, left = height // 2 - h // 2, width // 2 - w // 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    centre = torch.fft.ifftshift(spectrum[..., top : top + h, left : left + w], dim=(-2, -1))
    return torch.fft.ifft2(centre).real * ((h / height) * (w / width))


def masks_at(masks: Tensor, shape: Shape) -> Tensor:
    """Return masks [B, H, W] at the places of `low_frequency`'s pixels [B, h, w], by nearest neighbour."""
    rows, columns = (
        (torch.arange(side, device=masks.device) * full + side // 2) // side
        for side, full in zip(shape, masks.shape[-2:], strict=True)
    )
    return masks[:, rows][:, :, columns]

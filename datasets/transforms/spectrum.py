"""Low-frequency cropping: smaller images that keep the centre of their Fourier spectrum (arXiv 2405.08768)."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 64
"""Images whose spectra are in memory together: a spectrum takes 8 times the memory of its image."""


def low_frequency(images: Tensor, size: int) -> Tensor:
    """Return images [B, C, S, S] as float32 [B, C, size, size] that hold the lowest size x size frequencies of each.

    Unlike resizing, which averages over areas, it keeps all that a grid of this size can hold, unweakened. Means stay,
    and values of uint8 images are clamped to 0 to 255. Pixel (i, j) lies where pixel (i S / size, j S / size) lay.
    """
    small = torch.cat([_low_frequency(part.float(), size) for part in images.split(_AT_ONCE)])
    return small.clamp_(0.0, 255.0) if images.dtype == torch.uint8 else small


def _low_frequency(images: Tensor, size: int) -> Tensor:
    side = images.shape[-1]
    first = side // 2 - size // 2  # where frequency 0 is in the middle, it is at S // 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    centre = torch.fft.ifftshift(spectrum[..., first : first + size, first : first + size], dim=(-2, -1))
    return torch.fft.ifft2(centre).real * (size / side) ** 2


def masks_at(masks: Tensor, size: int) -> Tensor:
    """Return masks [B, S, S] at the places of `low_frequency`'s pixels [B, size, size], by nearest neighbour."""
    places = (torch.arange(size) * masks.shape[-1] + size // 2) // size
    return masks[:, places][:, :, places]

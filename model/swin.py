"""Swin at any stage's image size: torchvision's models and weights, with attention that leaves padding out.

torchvision pads a feature map with zeros to whole windows and lets the zeros take part in the attention; at 128 pixels
two thirds of the last map's keys would be padding. Here a map smaller than the window is one window of the map's size,
with the position bias of that part, and padding elsewhere is masked. Where nothing is padded (multiples of 224 pixels;
of 256 for V2) the two are the same.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class WindowAttention(ShiftedWindowAttention):
    """Attention inside (shifted) windows of a map of any size."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        height, width = x.shape[1:3]
        window = (min(self.window_size[0], height), min(self.window_size[1], width))
        # A map of one window has nothing to shift.
        shift = tuple(s if w < size else 0 for s, w, size in zip(self.shift_size, window, (height, width), strict=True))
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        padded = (x.shape[1], x.shape[2])
        x = torch.roll(x, (-shift[0], -shift[1]), (1, 2)) if any(shift) else x
        x = self._attend(_to_windows(x, window), self._bias(window, (height, width), padded, shift))
        x = _from_windows(x, window, padded)
        x = torch.roll(x, shift, (1, 2)) if any(shift) else x
        return x[:, :height, :width]

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, windows, N, C] -> the same; `bias` [1 or windows, heads, N, N] is added to the logits."""
        batch, windows, positions, channels = x.shape
        qkv = F.linear(x, self.qkv.weight, self._qkv_bias())
        q, k, v = qkv.view(batch, windows, positions, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        attention = F.softmax(self._logits(q, k) + bias, dim=-1)
        attention = F.dropout(attention, self.attention_dropout, self.training)
        x = self.proj((attention @ v).transpose(2, 3).reshape(batch, windows, positions, channels))
        return F.dropout(x, self.dropout, self.training)

    def _qkv_bias(self) -> Tensor | None:
        return self.qkv.bias

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)

    def _bias(
        self, window: tuple[int, int], size: tuple[int, int], padded: tuple[int, int], shift: tuple[int, ...]
    ) -> Tensor:
        bias = self.get_relative_position_bias()
        if list(window) != list(self.window_size):
            # A smaller window's relative positions are those of a corner of the whole one.
            index = torch.arange(math.prod(self.window_size), device=bias.device).view(*self.window_size)
            corner = index[: window[0], : window[1]].flatten()
            bias = bias[:, :, corner][:, :, :, corner]
        if size == padded and not any(shift):
            return bias
        regions = _to_windows(_regions(window, size, padded, shift, bias.device)[None, :, :, None], window)
        apart = regions != regions.transpose(-2, -1)  # [1, windows, N, N]
        return bias + torch.zeros_like(apart, dtype=bias.dtype).masked_fill(apart, -torch.inf).transpose(0, 1)


class CosineWindowAttention(WindowAttention, ShiftedWindowAttentionV2):
    """The same for V2: cosine similarity with a learned scale, and no bias on the keys."""

    def _qkv_bias(self) -> Tensor | None:
        queries, keys, values = self.qkv.bias.chunk(3)
        return torch.cat((queries, torch.zeros_like(keys), values))

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale


def attend_to_images_only(model: nn.Module) -> None:
    """Make the attention of a torchvision Swin leave padding out; parameters and their names stay."""
    for module in model.modules():
        if isinstance(module, ShiftedWindowAttentionV2):
            module.__class__ = CosineWindowAttention
        elif isinstance(module, ShiftedWindowAttention):
            module.__class__ = WindowAttention


def _regions(
    window: tuple[int, int],
    size: tuple[int, int],
    padded: tuple[int, int],
    shift: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Labels [H, W] of a shifted map: equal where positions are neighbours in the image too, or both padding."""
    rows, columns = (_regions_along(padded[axis], size[axis], window[axis], shift[axis], device) for axis in (0, 1))
    labels = rows[:, None] * 3 + columns[None, :]
    return labels.masked_fill((rows[:, None] < 0) | (columns[None, :] < 0), -1)


def _regions_along(padded: int, size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Labels of one axis after the shift: 0 before the last window, 1 and 2 in its two parts, -1 for padding."""
    position = torch.arange(padded, device=device)
    labels = (position >= padded - window).long() + (position >= padded - shift).long() if shift else position * 0
    return labels.masked_fill((position + shift) % padded >= size, -1)


def _to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, H, W, C] -> [B, windows, positions, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.transpose(2, 3).reshape(batch, -1, window[0] * window[1], channels)


def _from_windows(x: Tensor, window: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """[B, windows, positions, C] -> [B, H, W, C]."""
    rows, columns = padded[0] // window[0], padded[1] // window[1]
    x = x.reshape(x.shape[0], rows, columns, window[0], window[1], x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], *padded, x.shape[-1])

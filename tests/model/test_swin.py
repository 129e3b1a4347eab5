import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from model.config import ModelConfig
from model.factory import build_model
from model.swin import attend_to_images_only

WINDOW, HEADS, CHANNELS = 4, 2, 8


def attention_of(kind: type[ShiftedWindowAttention], shift: int) -> ShiftedWindowAttention:
    torch.manual_seed(0)
    attention = kind(CHANNELS, [WINDOW, WINDOW], [shift, shift], HEADS)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    attend_to_images_only(attention)
    return attention.eval()


def by_hand(attention: ShiftedWindowAttention, x: Tensor, shift: int) -> Tensor:
    """Attention of each position over the image's positions that share its window, one by one. x: [H, W, C]."""
    height, width, _ = x.shape
    bias = attention.get_relative_position_bias()[0]  # [heads, N, N]
    qkv_bias = attention.qkv.bias.clone()
    if isinstance(attention, ShiftedWindowAttentionV2):
        qkv_bias[CHANNELS : 2 * CHANNELS] = 0
    q, k, v = (x @ attention.qkv.weight.T + qkv_bias).view(height, width, 3, HEADS, -1).permute(2, 0, 1, 3, 4)

    def window(y: int, size: int) -> int:
        # The windows' borders are at shift, shift + WINDOW, ... if there is more than one window.
        return (y - shift) // WINDOW if size > WINDOW else 0

    out = torch.zeros_like(x)
    for y in range(height):
        for z in range(width):
            keys = [
                (a, b)
                for a in range(height)
                for b in range(width)
                if window(a, height) == window(y, height) and window(b, width) == window(z, width)
            ]
            for head in range(HEADS):
                logits = torch.stack([logit(attention, q[y, z, head], k[a, b, head], head) for a, b in keys])
                # The same offset between any two positions of a window has the same bias.
                offsets = [offset_bias(bias[head], y - a, z - b) for a, b in keys]
                weights = torch.softmax(logits + torch.stack(offsets), 0)
                part = slice(head * CHANNELS // HEADS, (head + 1) * CHANNELS // HEADS)
                out[y, z, part] = sum(w * v[a, b, head] for w, (a, b) in zip(weights, keys, strict=True))
    return out @ attention.proj.weight.T + attention.proj.bias


def logit(attention: ShiftedWindowAttention, q: Tensor, k: Tensor, head: int) -> Tensor:
    if isinstance(attention, ShiftedWindowAttentionV2):
        scale = attention.logit_scale[head].clamp(max=math.log(100)).exp().squeeze()
        return nn.functional.cosine_similarity(q, k, dim=0) * scale
    return q @ k / math.sqrt(CHANNELS / HEADS)


def offset_bias(bias: Tensor, dy: int, dx: int) -> Tensor:
    y, x = max(dy, 0), max(dx, 0)
    return bias[y * WINDOW + x, (y - dy) * WINDOW + (x - dx)]


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 9), (3, 2), (4, 4), (3, 7)])
def test_attention_is_over_the_images_own_positions(
    kind: type[ShiftedWindowAttention], shift: int, size: tuple[int, int]
) -> None:
    attention = attention_of(kind, shift)
    x = torch.randn(2, *size, CHANNELS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([by_hand(attention, one, shift) for one in x])
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_one_model_trains_at_several_sizes(name: str) -> None:
    model = build_model(ModelConfig(name=name, stochastic_depth=0), num_classes=3).train()
    for size in (32, 96, 160):
        model.zero_grad()
        model(torch.randn(1, 3, size, size)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

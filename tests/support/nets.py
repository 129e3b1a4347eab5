"""Networks of a few layers, for tests of what is done with their tensors."""

from __future__ import annotations

import torch
from torch import nn


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    return net.to(memory_format=torch.channels_last)

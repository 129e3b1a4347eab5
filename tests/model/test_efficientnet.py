from __future__ import annotations

import math

import pytest
import torch

from model.config import ModelConfig
from model.factory import build_model


@pytest.mark.parametrize("num_classes", [2, 1000])
def test_a_fresh_model_is_unsure(num_classes: int) -> None:
    """The first loss is that of a guess, for few classes too."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=num_classes)
    logits = model(torch.randn(16, 3, 32, 32))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(16) % num_classes).item()
    assert loss == pytest.approx(math.log(num_classes), rel=0.15)

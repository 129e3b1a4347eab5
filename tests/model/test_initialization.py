"""Random weights are the authors': normal, of the variance 2 / (k * k * outputs / groups)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.factory import build_model
from model.tables import ARCHITECTURES


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def _check(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config, num_classes=3)
    for name, layer in _convolutions(model):
        if name == "head":
            continue
        expected = math.sqrt(2 / (math.prod(layer.kernel_size) * layer.out_channels / layer.groups))
        error = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors of a standard deviation
        assert layer.weight.std().item() == pytest.approx(expected, rel=error), name


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "efficientnet_v2_s", "efficientnet_v2_tiny"])
def test_every_convolution_has_the_published_deviation(name: str) -> None:
    _check(ModelConfig(name=name))


@pytest.mark.parametrize("channels", [1, 5])
def test_with_other_channels_too(channels: int) -> None:
    _check(ModelConfig(name="efficientnet_v2_tiny", in_channels=channels, same_padding=True))


def test_a_unet_has_it_in_encoder_and_decoder() -> None:
    _check(ModelConfig(name="unet_efficientnet_v2_tiny"))


@pytest.mark.soak
@pytest.mark.parametrize("name", [*ARCHITECTURES, "unet_efficientnet_b0", "unet_efficientnet_v2_s"])
def test_every_table_has_it(name: str) -> None:
    _check(ModelConfig(name=name))


def _variances_before_norms(model: nn.Module) -> list[tuple[float, float]]:
    """Return the median channel's variance at each batch norm's input, and the norm's epsilon."""
    seen: list[tuple[float, float]] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        seen.append((inputs[0].var((0, 2, 3)).median().item(), norm.eps))

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(1)))
    return seen


def test_norms_see_variance_and_not_their_epsilon() -> None:
    """With torchvision's weights 27 of V2-S's 110 norms, nearly all after a depthwise convolution, saw less than it."""
    below = {}
    for init in ("torchvision", "google"):
        torch.manual_seed(0)
        model = build_model(
            ModelConfig(name="efficientnet_v2_s", stochastic_depth=0.0, init=init),  # type: ignore[arg-type]
            num_classes=3,
        )
        below[init] = sum(variance < eps for variance, eps in _variances_before_norms(model))
    assert below["torchvision"] >= 20
    assert below["google"] == 0


def test_the_two_differ_in_grouped_convolutions_only() -> None:
    torch.manual_seed(0)
    google = build_model(ModelConfig(name="efficientnet_b0"), num_classes=3)
    torch.manual_seed(0)
    other = build_model(ModelConfig(name="efficientnet_b0", init="torchvision"), num_classes=3)
    groups = {f"{name}.weight": layer.groups for name, layer in _convolutions(google)}
    for (name, ours), theirs in zip(google.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs * math.sqrt(groups.get(name, 1)))

from decimal import Decimal
from functools import cache

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.cost import count_multiply_adds, count_parameters, multiply_adds
from model.factory import build_model
from model.published import PUBLISHED, PUBLISHED_FUSED_B4, Published


@cache
def meta_model(config: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        return build_model(config, num_classes=1000)


def printed(count: int, like: str) -> float:
    """Billions, rounded to the digits of the published figure."""
    return round(count / 1e9, -int(Decimal(like).as_tuple().exponent))


def test_a_convolution_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)).train()
    assert count_parameters(net) == 3 * 8 * 9 + 16
    assert count_multiply_adds(net, 32) == 16 * 16 * 8 * 27
    assert count_multiply_adds(net, (32, 48)) == 16 * 24 * 8 * 27
    assert count_multiply_adds(net, 32, elementwise=True) == 16 * 16 * 8 * 27 + 16 * 16 * 8
    assert net.training


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_the_published_ones(name: str) -> None:
    published = PUBLISHED[name]
    model = meta_model(ModelConfig(name=name))
    if published.parameters.endswith("M"):
        assert round(count_parameters(model) / 1e6, 2) == float(published.parameters[:-1])
    else:
        assert count_parameters(model) == int(published.parameters)
    # The released V2 code prints what TensorFlow's profiler counts; torchvision counts convolutions and products.
    by_tensorflow = name.startswith("efficientnet_v2")
    count = count_multiply_adds(model, published.image_size, elementwise=by_tensorflow)
    assert printed(count, published.multiply_adds_b) == float(published.multiply_adds_b)


@pytest.mark.parametrize(("name", "billions"), [("s", 8.366), ("m", 24.582), ("l", 56.080)])
def test_v2_multiply_adds_are_torchvisions_too(name: str, billions: float) -> None:
    config = ModelConfig(name=f"efficientnet_v2_{name}")
    count = multiply_adds(config, PUBLISHED[config.name].image_size, num_classes=1000)
    assert round(count / 1e9, 3) == billions


def test_those_of_a_config_have_its_channels_and_shape() -> None:
    config = ModelConfig(name="efficientnet_v2_tiny", in_channels=5)
    with torch.device("meta"):
        model = build_model(config, num_classes=10)
    assert multiply_adds(config, (32, 48)) == count_multiply_adds(model, (32, 48), in_channels=5)


@pytest.mark.parametrize(("rows", "published"), PUBLISHED_FUSED_B4.items())
def test_fused_variants_of_b4_are_near_the_papers(rows: tuple[int, ...], published: Published) -> None:
    """The paper doesn't print the fused kernels, hence the tolerances, 2.1 and 2.8 %."""
    model = meta_model(ModelConfig(name="efficientnet_b4", fused_rows=rows))
    assert count_parameters(model) / 1e6 == pytest.approx(float(published.parameters[:-1]), rel=0.021)
    count = count_multiply_adds(model, published.image_size, elementwise=True)
    assert count / 1e9 == pytest.approx(float(published.multiply_adds_b), rel=0.028)

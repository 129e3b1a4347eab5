from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.checks import check_image_size, check_model
from model.config import ModelConfig
from model.factory import build_model
from model.regularization import set_dropout

# The published counts, 1,000 classes.
PARAMETERS = {
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_m": 54_139_356,
    "efficientnet_v2_l": 118_515_272,
}
# timm prints these in millions.
PARAMETERS_M = {
    "efficientnet_v2_b0": 7.14,
    "efficientnet_v2_b1": 8.14,
    "efficientnet_v2_b2": 10.10,
    "efficientnet_v2_b3": 14.36,
    "efficientnet_v2_xl": 208.12,
}


def count(name: str) -> int:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), num_classes=1000)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exactly_the_published_ones(name: str) -> None:
    assert count(name) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS_M)
def test_parameters_are_the_published_ones_in_the_printed_digits(name: str) -> None:
    assert round(count(name) / 1e6, 2) == PARAMETERS_M[name]


@pytest.mark.parametrize(
    "name",
    ["efficientnet_v2_tiny", "efficientnet_lite0", "resnet50", "swin_t", "swin_v2_t", "timm/mobilenetv3_small_050"],
)
def test_models_take_other_channels_and_classes(name: str) -> None:
    model = build_model(ModelConfig(name=name, in_channels=1), num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "nearest"), [("efficientnet_v2_x", "efficientnet_v2_xl"), ("timm/resnet51", "timm/resnet50"), ("?", "b0")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest):
        build_model(ModelConfig(name=name), num_classes=2)


@pytest.mark.parametrize("name", ["efficientnet_v2_tiny", "resnet50", "swin_t", "timm/mobilenetv3_small_050"])
def test_dropout_follows_the_set_rate_on_the_live_model(name: str) -> None:
    model = build_model(ModelConfig(name=name, stochastic_depth=0), num_classes=4)
    model.train()
    for module in model.modules():  # leave the dropout as the only randomness and batch dependence
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(2, 3, 64, 64)
    set_dropout(model, 0.0)
    assert torch.equal(model(images), model(images))
    set_dropout(model, 0.9)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 0}, "in_channels=0"),
        ({"stochastic_depth": 1.0}, "stochastic_depth=1.0"),
        ({"norm_momentum": 0.0}, "norm_momentum=0.0"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0"),
    ],
)
def test_a_bad_field_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


def test_batch_norm_fields_reach_the_modules() -> None:
    for name in ("efficientnet_v2_tiny", "resnet50"):
        model = build_model(ModelConfig(name=name, norm_momentum=0.05, norm_eps=2e-3), num_classes=2)
        assert {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.05, 2e-3)}
    model = build_model(ModelConfig(name="efficientnet_b0"), num_classes=2)
    assert {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.01, 1e-3)}


def test_image_sizes_that_cannot_work_are_refused_with_the_nearest() -> None:
    for name, size in (("efficientnet_v2_s", 185), ("efficientnet_v2_tiny", 16), ("swin_t", 160), ("resnet50", 33)):
        check_image_size(ModelConfig(name=name), size)
    with pytest.raises(ValueError, match="nearest: 160 and 192"):
        check_image_size(ModelConfig(name="swin_t"), 185)
    with pytest.raises(ValueError, match="32 is the smallest"):
        check_image_size(ModelConfig(name="efficientnet_v2_s"), 31)


def at_ratio(ratio: float) -> Callable[[int], tuple[int, int]]:
    return lambda size: (size, round(size * ratio))


def test_of_images_that_are_not_square_both_sides_must_fit() -> None:
    for name, size, ratio in (("efficientnet_v2_s", 185, 1.5), ("swin_t", 192, 4 / 3), ("resnet50", 33, 4.0)):
        check_image_size(ModelConfig(name=name), size, at_ratio(ratio))
    with pytest.raises(ValueError, match=r"^image_size=224 is 299x224 px: swin_t needs .*; nearest: 192 and 288$"):
        check_image_size(ModelConfig(name="swin_t"), 224, at_ratio(4 / 3))
    with pytest.raises(ValueError, match=r"nearest: none at this data\.aspect_ratio$"):
        check_image_size(ModelConfig(name="swin_t"), 224, lambda size: (size, size + 1))


def test_check_model_refuses_what_build_model_would() -> None:
    check_model(ModelConfig(name="efficientnet_b7"))
    with pytest.raises(ValueError, match="no such model"):
        check_model(ModelConfig(name="efficientnet_b8"))
    with pytest.raises(ValueError, match="rows 1 to 7"):
        check_model(ModelConfig(name="efficientnet_b4", fused_rows=(1, 8)))
    with pytest.raises(ValueError, match="Fused-MBConv already"):
        check_model(ModelConfig(name="efficientnet_v2_s", fused_rows=(2,)))
    with pytest.raises(ValueError, match="EfficientNets only"):
        ModelConfig(name="resnet50", same_padding=True)


def test_a_timm_model_that_refuses_a_size_has_its_nearest_named() -> None:
    check_image_size(ModelConfig(name="timm/vit_tiny_patch16_224", stochastic_depth=0), 160)
    with pytest.raises(ValueError, match="nearest: 160 and 176"):
        check_image_size(ModelConfig(name="timm/vit_tiny_patch16_224", stochastic_depth=0), 171)
    check_image_size(ModelConfig(name="timm/vit_tiny_patch16_224", stochastic_depth=0), 96, at_ratio(4 / 3))
    with pytest.raises(ValueError, match=r"image_size=112 is 149x112 px: .* does not take it; nearest: 96 and 144"):
        check_image_size(ModelConfig(name="timm/vit_tiny_patch16_224", stochastic_depth=0), 112, at_ratio(4 / 3))

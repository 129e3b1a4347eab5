"""Layers run from the stem, 0, to the head, in the order in which an image goes through them."""

from __future__ import annotations

import pytest

from model.config import ModelConfig
from model.depth import layer_of_parameters
from model.factory import build_model


@pytest.mark.parametrize(
    ("name", "stem", "head"),
    [
        ("efficientnet_v2_tiny", "features.0", "classifier.1"),
        ("unet_efficientnet_v2_tiny", "encoder.0", "head"),
        ("resnet50", "conv1", "fc"),
        ("swin_mini_16", "features.0.0", "head"),
        ("timm/resnet18", "conv1", "fc"),
        ("timm/vit_tiny_patch16_224", "patch_embed", "head"),
    ],
)
def test_the_stem_is_first_and_the_head_last(name: str, stem: str, head: str) -> None:
    depth = 0.0 if name == "timm/resnet18" else 0.1
    config = ModelConfig(name=name, stochastic_depth=depth)
    if name.startswith("timm/vit"):
        model = __import__("timm").create_model("vit_tiny_patch16_224", num_classes=3)
    else:
        model = build_model(config, num_classes=3)
    layers = layer_of_parameters(model)
    assert layers.keys() == dict(model.named_parameters()).keys()
    last = max(layers.values())
    assert {layer for key, layer in layers.items() if key.startswith(f"{stem}.")} == {0}
    assert {layer for key, layer in layers.items() if key.startswith(f"{head}.")} == {last}
    assert set(layers.values()) == {*range(last + 1)}


def test_a_block_is_one_layer_and_blocks_are_in_order() -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=3)
    layers = layer_of_parameters(model)
    order = list(layers.values())
    assert order == sorted(order)
    blocks = {key.rsplit(".block", 1)[0]: layer for key, layer in layers.items() if ".block" in key}
    assert len(blocks) == len(set(blocks.values())) == 10
    assert max(layers.values()) == 12  # the stem, ten blocks, the last convolution, the classifier

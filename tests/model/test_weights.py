from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from model.agreement import largest_difference, with_real_statistics
from model.config import ModelConfig
from model.factory import build_model
from model.weights import WeightsError, load_weights, read_weights


# torchvision and timm keep PyTorch's epsilon in V1 up to B4; V2 and all of timm's `tf_` have TensorFlow's.
@pytest.mark.parametrize(
    ("name", "fields"),
    [("efficientnet_b0", {"norm_eps": 1e-5}), ("efficientnet_b5", {}), ("efficientnet_v2_s", {}), ("swin_t", {})],
)
def test_torchvision_weights_give_torchvisions_logits(name: str, fields: dict) -> None:
    size = 224 if name == "swin_t" else 80
    source = with_real_statistics(torchvision.models.get_model(name), size)
    ours = build_model(ModelConfig(name=name, **fields), num_classes=1000)
    assert load_weights(ours, source.state_dict()) == []
    assert largest_difference(ours, source, size) < 1e-10


@pytest.mark.parametrize(
    ("name", "fields", "timm_name", "size"),
    [
        ("efficientnet_b0", {"norm_eps": 1e-5}, "efficientnet_b0", 96),
        ("efficientnet_b1", {"same_padding": True}, "tf_efficientnet_b1", 96),
        ("efficientnet_v2_s", {"same_padding": True}, "tf_efficientnetv2_s", 96),
        ("efficientnet_v2_b2", {"same_padding": True}, "tf_efficientnetv2_b2", 90),
        # Every convolution of stride 2 sees an odd size here, where the two paddings are one.
        ("efficientnet_v2_b0", {}, "tf_efficientnetv2_b0", 97),
        ("efficientnet_lite0", {"same_padding": True}, "tf_efficientnet_lite0", 96),
    ],
)
def test_timm_weights_give_timms_logits(name: str, fields: dict, timm_name: str, size: int) -> None:
    source = with_real_statistics(timm.create_model(timm_name), size)
    ours = build_model(ModelConfig(name=name, **fields), num_classes=1000)
    assert load_weights(ours, source.state_dict()) == []
    assert largest_difference(ours, source, size) < 1e-10


def test_tensorflow_weights_need_tensorflows_padding() -> None:
    source = with_real_statistics(timm.create_model("tf_efficientnetv2_b0"), 96)
    ours = build_model(ModelConfig(name="efficientnet_v2_b0"), num_classes=1000)
    load_weights(ours, source.state_dict())
    assert largest_difference(ours, source, 96) > 1e-2


def test_names_of_efficientnet_pytorch_are_known() -> None:
    config = ModelConfig(name="efficientnet_b0")
    source = build_model(config, num_classes=5)
    names = {"features.0.0.weight": "_conv_stem.weight", "classifier.1.bias": "_fc.bias"}
    names |= {
        "features.1.0.block.1.fc2.bias": "_blocks.0._se_expand.bias",
        "features.2.1.block.3.1.running_var": "_blocks.2._bn2.running_var",
        "features.7.0.block.0.0.weight": "_blocks.15._expand_conv.weight",
        "features.8.1.weight": "_bn1.weight",
    }
    from model.weights import module_names

    flat = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, _, theirs in module_names(source) for leaf in LEAVES}
    assert names.items() <= flat.items()
    state = {flat[name]: value for name, value in source.state_dict().items()}
    ours = build_model(config, num_classes=5)
    assert load_weights(ours, state) == []
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in source.state_dict().items())


LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TINY = ModelConfig(name="efficientnet_v2_tiny")


def test_a_changed_head_and_image_channels_are_noted() -> None:
    source = with_real_statistics(build_model(TINY, num_classes=10), 64)
    grey = build_model(ModelConfig(name=TINY.name, in_channels=1), num_classes=4)
    head = grey.state_dict()["classifier.1.weight"].clone()
    notes = load_weights(grey, source.state_dict())
    assert notes == [
        "features.0.0.weight: 3 image channels in the file, 1 here: summed and spread evenly",
        "classifier.1: 10 classes in the file, 4 here: starts from random weights",
    ]
    assert torch.equal(grey.state_dict()["classifier.1.weight"], head)
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = source.features(image.expand(1, 3, 64, 64))
        torch.testing.assert_close(grey.eval().features(image), expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_grey_images_gives_its_weights_to_one_of_three_channels() -> None:
    source = with_real_statistics(build_model(TINY, num_classes=4), 64)
    grey = build_model(ModelConfig(name=TINY.name, in_channels=1), num_classes=4)
    load_weights(grey, source.state_dict())
    model = build_model(TINY, num_classes=4)
    (note,) = load_weights(model, grey.state_dict())
    assert note == "features.0.0.weight: 1 image channels in the file, 3 here: summed and spread evenly"
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = grey.eval()(image)
        torch.testing.assert_close(model.eval()(image.expand(1, 3, 64, 64)), expected, rtol=1e-4, atol=1e-4)


def test_what_is_missing_left_over_or_of_another_shape_is_listed() -> None:
    state = build_model(TINY, num_classes=3).state_dict()
    model = build_model(TINY, num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state["extra.weight"] = state.pop("features.1.0.block.0.1.bias")
    state["features.2.0.block.0.0.weight"] = torch.zeros(1, 2)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state)
    message = str(caught.value)
    assert "missing: features.1.0.block.0.1.bias;" in message
    assert "left over: extra.weight;" in message
    assert "features.2.0.block.0.0.weight [1, 2] instead of [64, 16, 3, 3]" in message
    assert "\n" not in message
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_another_model_is_refused_in_one_short_line() -> None:
    with pytest.raises(WeightsError, match=r"and \d+ more") as caught:
        load_weights(
            build_model(ModelConfig(name="efficientnet_b1"), num_classes=3),
            build_model(TINY, num_classes=3).state_dict(),
        )
    assert len(str(caught.value)) < 1500


def test_a_unet_takes_a_classifiers_weights_into_its_encoder() -> None:
    source = build_model(ModelConfig(name="efficientnet_b0"), num_classes=1000)
    unet = build_model(ModelConfig(name="unet_efficientnet_b0"), num_classes=6)
    decoder = unet.state_dict()["decoder.0.0.weight"].clone()
    (note,) = load_weights(unet, source.state_dict())
    assert "decoder and head start from random weights" in note
    assert torch.equal(unet.encoder[3][0].block[1][0].weight, source.features[3][0].block[1][0].weight)
    assert torch.equal(unet.state_dict()["decoder.0.0.weight"], decoder)
    timms = timm.create_model("efficientnet_b0")
    load_weights(unet, timms.state_dict())
    assert torch.equal(unet.encoder[7][0].block[0][0].weight, timms.blocks[6][0].conv_pw.weight)
    again = build_model(ModelConfig(name="unet_efficientnet_b0"), num_classes=6)
    assert load_weights(again, unet.state_dict()) == []
    assert torch.equal(again.state_dict()["decoder.0.0.weight"], decoder)


def test_files_are_read_with_or_without_wrappers(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(3.0), "b.bias": torch.ones(2)}
    averaged: dict[str, Tensor] = {f"module.{name}": value for name, value in state.items()}
    save_file(state, tmp_path / "plain.safetensors")
    torch.save({"epoch": 3, "state_dict": averaged}, tmp_path / "envelope.pth")
    torch.save(averaged | {"n_averaged": torch.tensor(7)}, tmp_path / "average.pt")
    for file in ("plain.safetensors", "envelope.pth", "average.pt"):
        read = read_weights(tmp_path / file)
        assert {name: value.tolist() for name, value in read.items()} == {"a.weight": [0, 1, 2], "b.bias": [1, 1]}


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole_module.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for file, message in (
        ("whole_module.pth", "weights only"),
        ("text.safetensors", "not a safetensors"),
        ("text.pth", "weights only"),
        ("empty.pth", "holds no weights"),
        ("absent.pth", "no such file"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            read_weights(tmp_path / file)
        assert file in str(caught.value)
        assert "\n" not in str(caught.value)

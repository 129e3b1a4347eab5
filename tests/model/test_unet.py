import pytest
import torch
from torch import nn

from model.checks import check_image_size
from model.config import ModelConfig
from model.factory import build_model
from model.regularization import set_dropout
from model.unet import EfficientUNet


@pytest.mark.parametrize("name", ["unet_efficientnet_v2_tiny", "unet_efficientnet_b0", "unet_efficientnet_v2_b0"])
@pytest.mark.parametrize("size", [(32, 64), (96, 96), (75, 101)])
def test_logits_have_the_images_size(name: str, size: tuple[int, int]) -> None:
    model = build_model(ModelConfig(name=name), num_classes=6).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (2, 6, *size)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_b0", [16, 24, 40, 112]),
        ("efficientnet_v2_s", [24, 48, 64, 160]),
        ("efficientnet_v2_xl", [32, 64, 96, 256]),
        ("efficientnet_v2_tiny", [16, 32, 48]),
    ],
)
def test_the_last_map_of_each_stride_is_joined(name: str, channels: list[int]) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=f"unet_{name}"), num_classes=2)
        assert isinstance(model, EfficientUNet)
        x, sizes = torch.empty(1, 3, 64, 64), []
        for index, row in enumerate(model.encoder):
            x = row(x)
            if index in model.joined:
                sizes.append(tuple(x.shape[1:3]))
    assert sizes == [(c, 32 // 2**level) for level, c in enumerate(channels)]
    assert x.shape[-1] == 32 // 2 ** len(channels)


def test_every_joined_map_reaches_the_logits() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="unet_efficientnet_v2_tiny", stochastic_depth=0), num_classes=2)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_learns_a_boundary() -> None:
    """Bright or dark, pixel by pixel: 40 steps are enough if positions are kept in order."""
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(name="unet_efficientnet_v2_tiny", stochastic_depth=0, norm_momentum=0.1), num_classes=2
    )
    set_dropout(model, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        coarse = torch.randn(8, 1, 4, 4)
        images = nn.functional.interpolate(coarse, size=(64, 64), mode="nearest").expand(-1, 3, -1, -1)
        target = (images[:, 0] > 0).long()
        loss = nn.functional.cross_entropy(model.train()(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (model.train()(images).argmax(1) == target).float().mean() > 0.93


def test_dropout_reaches_the_head() -> None:
    model = build_model(ModelConfig(name="unet_efficientnet_v2_tiny", stochastic_depth=0), num_classes=2)
    model.train()
    images = torch.randn(2, 3, 32, 32)
    set_dropout(model, 0.0)
    torch.testing.assert_close(model(images), model(images))
    set_dropout(model, 0.5)
    assert not torch.allclose(model(images), model(images))


def test_images_below_the_stride_are_refused() -> None:
    check_image_size(ModelConfig(name="unet_efficientnet_v2_tiny"), 75)
    with pytest.raises(ValueError, match="32 is the smallest"):
        check_image_size(ModelConfig(name="unet_efficientnet_b0"), 24)

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.factory import build_model
from model.regularization import set_dropout, set_stochastic_depth


def probabilities(model: nn.Module) -> list[float]:
    return [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]


def test_stochastic_depth_grows_linearly_and_can_be_set() -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny", stochastic_depth=0.2), num_classes=4)
    built = probabilities(model)
    assert built == pytest.approx([0.2 * i / 10 for i in range(10)])
    set_stochastic_depth(model, 0.0)
    assert probabilities(model) == [0.0] * 10
    set_stochastic_depth(model, 0.2)
    assert probabilities(model) == pytest.approx(built)
    with pytest.raises(ValueError, match=r"stochastic_depth=1\.5"):
        set_stochastic_depth(model, 1.5)


def test_swins_last_block_reaches_the_rate() -> None:
    with torch.device("meta"):
        swin = build_model(ModelConfig(name="swin_t", stochastic_depth=0.1), num_classes=4)
    assert probabilities(swin)[-1] == pytest.approx(0.1)
    set_stochastic_depth(swin, 0.3)
    assert probabilities(swin)[0] == 0
    assert probabilities(swin)[-1] == pytest.approx(0.3)


def test_timms_rates_keep_their_proportions() -> None:
    model = build_model(ModelConfig(name="timm/efficientnet_b0", stochastic_depth=0.2), num_classes=4)

    def rates() -> list[float]:
        return [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]

    built = rates()
    set_stochastic_depth(model, 0.0)
    assert not any(rates())
    set_stochastic_depth(model, max(built) / 2)
    assert rates() == pytest.approx([rate / 2 for rate in built])


@pytest.mark.parametrize(
    "name", ["efficientnet_v2_tiny", "unet_efficientnet_v2_tiny", "resnet50", "timm/efficientnet_b0"]
)
def test_a_frozen_models_own_part_is_all_that_changes(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name, frozen=True, stochastic_depth=0), num_classes=3).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert {key.split(".")[0] for key in changed} <= {"classifier", "fc", "head", "decoder"}


@pytest.mark.parametrize("name", ["efficientnet_v2_tiny", "timm/efficientnet_b0"])
def test_freezing_changes_no_output(name: str) -> None:
    model = build_model(ModelConfig(name=name, stochastic_depth=0), num_classes=3).eval()
    frozen = build_model(ModelConfig(name=name, stochastic_depth=0, frozen=True), num_classes=3)
    frozen.load_state_dict(model.state_dict())
    set_dropout(frozen, 0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        # In training nothing is folded together, so only rounding may differ.
        assert (frozen.train()(images) - expected).abs().max() < 1e-3 * expected.std()

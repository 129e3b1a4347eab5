"""Activations that are computed again: the same gradients, statistics and random numbers, and less that is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from model.activation_checkpoints import checkpoint_blocks
from model.config import ModelConfig
from model.factory import build_model
from model.regularization import set_dropout

MODELS = ("efficientnet_v2_tiny", "unet_efficientnet_v2_tiny", "swin_mini_16", "timm/resnet18")


def _step(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """One pass forward and backward; return the output, all gradients and buffers, and the bytes that were kept."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    output.square().mean().backward()
    tensors = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return output, tensors | dict(model.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    depth = 0.0 if name.startswith("timm") else 0.5
    plain = build_model(ModelConfig(name=name, stochastic_depth=depth), num_classes=4).train()
    set_dropout(plain, 0.3)
    lean = copy.deepcopy(plain)
    assert checkpoint_blocks(lean) > 3
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        output, tensors, kept = _step(plain, images)
        again, others, less = _step(lean, images)
        assert torch.equal(output, again)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, others[key]), key
    assert less < kept


def test_evaluation_and_names_are_untouched() -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=4)
    names, images = list(model.state_dict()), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model.eval()(images)
        checkpoint_blocks(model)
        assert torch.equal(model(images), before)
    assert list(model.state_dict()) == names


def test_a_model_without_known_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoint_activations is True, but no blocks are known in Sequential"):
        checkpoint_blocks(nn.Sequential(nn.Linear(2, 2)))

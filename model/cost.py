"""The cost of a model: parameters and multiply-adds."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.efficientnet import FusedMBConv, MBConv
from torchvision.ops import SqueezeExcitation

from model.config import ModelConfig
from model.factory import build_model


def count_parameters(model: nn.Module) -> int:
    """All parameters, trainable or not; batch-norm statistics are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(
    model: nn.Module, image_size: int | tuple[int, int], *, in_channels: int = 3, elementwise: bool = False
) -> int:
    """Multiply-adds of one image's forward pass, a square's or one of (height, width): what the papers print as FLOPs.

    Convolutions and matrix products only, as torchvision prints them. `elementwise` adds an EfficientNet's batch norms
    (one multiply-add a value), gates and residual sums (half of one), which TensorFlow's profiler counts and so the
    authors' figures hold. A model built under `torch.device("meta")` is counted without being computed.
    """
    device = next(model.parameters()).device
    shape = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = torch.empty(1, in_channels, *shape, device=device)
    was_training = model.training
    model.eval()
    counts: list[float] = []
    hooks = _count_elementwise(model, counts) if elementwise else []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    return counter.get_total_flops() // 2 + round(sum(counts))


@cache
def multiply_adds(config: ModelConfig, image_size: int | tuple[int, int], *, num_classes: int = 10) -> int:
    """Return those of one image's forward pass through the model of a config, which is not computed."""
    with torch.device("meta"):
        model = build_model(config, num_classes=num_classes)
    return count_multiply_adds(model, image_size, in_channels=config.in_channels)


def _count_elementwise(model: nn.Module, counts: list[float]) -> list[Any]:
    def hook_of(weight: float) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            counts.append(weight * output.numel())

        return hook

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_hook(hook_of(1.0)))
        elif isinstance(module, SqueezeExcitation) or (
            isinstance(module, (MBConv, FusedMBConv)) and module.use_res_connect
        ):
            hooks.append(module.register_forward_hook(hook_of(0.5)))
    return hooks

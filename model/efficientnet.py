"""Architecture rows become torchvision's `EfficientNet`: one set of modules for V1, V2, Lite and searched rows."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConv, MBConvConfig

from model.blocks import SameConv2d, make_faster
from model.head import replace_linear, replace_stem
from model.tables import Architecture, Block

NORM_EPS = 1e-3
"""The authors' batch-norm epsilon; torchvision's V1 constructors up to B4 keep PyTorch's 1e-5 instead."""
NORM_MOMENTUM = 0.01
"""PyTorch's momentum of the paper's batch-norm decay 0.99; the released V2 code has 0.9, which is 0.1 here."""


def build_efficientnet(
    architecture: Architecture,
    *,
    num_classes: int,
    stochastic_depth: float,
    norm_eps: float,
    norm_momentum: float,
    in_channels: int,
    same_padding: bool,
    init: Literal["google", "torchvision"],
) -> EfficientNet:
    """The network of `architecture`: images [B, in_channels, H, W] -> logits [B, num_classes].

    `stochastic_depth` is the drop probability that the last block would reach; it grows linearly from 0 with depth.
    `same_padding` pads as TensorFlow does; the two agree where every convolution of stride 2 sees an odd size.
    `init` is whose random weights the convolutions start from, see `ModelConfig.init`.
    """
    norm_layer = partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
    model = EfficientNet(
        row_configs(architecture),
        dropout=architecture.dropout,
        stochastic_depth_prob=stochastic_depth,
        num_classes=num_classes,
        norm_layer=norm_layer,
        last_channel=architecture.head,
    )
    # One module for both, so that every family of models has its dropout in the same place.
    model.classifier[0] = nn.Identity()
    replace_linear(model, "classifier.1", dropout=architecture.dropout)
    _calm_classifier(model.classifier[1])
    if init == "google":
        _enlarge_grouped(model)
    if in_channels != 3:
        replace_stem(model, "features.0.0", in_channels)
    if same_padding:
        _pad_as_tensorflow(model)
    if architecture.activation == "relu6":
        _replace_activations(model, nn.SiLU, lambda: nn.ReLU6(inplace=True))
    make_faster(model)
    return model


def _enlarge_grouped(model: nn.Module) -> None:
    """Give grouped convolutions the fan-out of one group, k * k * outputs / groups, which each output's gradient sees.

    torchvision draws from a normal distribution of variance 2 / (k * k * outputs) for any number of groups. What a
    depthwise convolution of 1,000 channels then gives is below batch norm's epsilon, which takes it for noise.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.weight.data.mul_(module.groups**0.5)


def _calm_classifier(linear: nn.Module) -> None:
    """Draw the classifier's weights from at most +-1/sqrt(its inputs).

    The authors' +-1/sqrt(classes) is about that for 1,000 classes, but 0.7 for two: training would begin at a loss of
    1.7 instead of 0.7, and for many epochs unlearn its random start.
    """
    assert isinstance(linear, nn.Linear)
    bound = max(linear.in_features, linear.out_features) ** -0.5
    nn.init.uniform_(linear.weight, -bound, bound)


def row_configs(architecture: Architecture) -> list[MBConvConfig | FusedMBConvConfig]:
    """The rows as torchvision wants them: with the input channels, which the papers' tables leave to the row before."""
    inputs = [architecture.stem, *(block.channels for block in architecture.blocks)]
    return [_row_config(block, channels) for block, channels in zip(architecture.blocks, inputs, strict=False)]


def _row_config(block: Block, input_channels: int) -> MBConvConfig | FusedMBConvConfig:
    shape = (block.expansion, block.kernel, block.stride, input_channels, block.channels, block.layers)
    if block.operator == "Fused-MBConv":
        return FusedMBConvConfig(*shape)
    return MBConvConfig(*shape, block=MBConv if block.se else _mbconv_without_se)


def _mbconv_without_se(config: MBConvConfig, drop_probability: float, norm_layer: Callable[..., nn.Module]) -> MBConv:
    # An identity keeps the layer numbers, so that all MBConv blocks share one naming of weights.
    return MBConv(config, drop_probability, norm_layer, se_layer=lambda *_, **__: nn.Identity())


def _pad_as_tensorflow(model: nn.Module) -> None:
    for module in model.modules():
        # At stride 1 and odd kernels the paddings are the same.
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.__class__ = SameConv2d


def _replace_activations(module: nn.Module, old: type[nn.Module], new: Callable[[], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, old):
            setattr(module, name, new())
        else:
            _replace_activations(child, old, new)

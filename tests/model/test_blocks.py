"""The faster blocks are torchvision's to rounding, shown in float64: outputs, gradients and batch-norm statistics."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.efficientnet import FusedMBConv, FusedMBConvConfig, MBConv, MBConvConfig

from model.blocks import Activation, PointwiseConv2d, make_faster
from model.config import ModelConfig
from model.factory import build_model


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (MBConv, MBConvConfig(6, 3, 1, 16, 16, 1)),
        (MBConv, MBConvConfig(6, 5, 2, 16, 24, 1)),
        (MBConv, MBConvConfig(1, 3, 1, 16, 16, 1)),
        (FusedMBConv, FusedMBConvConfig(4, 3, 1, 16, 16, 1)),
        (FusedMBConv, FusedMBConvConfig(1, 3, 1, 16, 16, 1)),
    ],
)
def test_a_block_is_torchvisions(
    kind: type, config: MBConvConfig | FusedMBConvConfig, training: bool, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    theirs = kind(config, 0.4, nn.BatchNorm2d).double().to(memory_format=memory_format).train(training)
    ours = copy.deepcopy(theirs)
    make_faster(ours)
    assert type(ours) is not type(theirs)
    results = []
    for block in (theirs, ours):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(6, 16, 9, 9, generator=generator).double().to(memory_format=memory_format)
        images.requires_grad_()
        torch.manual_seed(2)  # the same blocks are dropped
        output = block(images)
        output.square().sum().backward()
        results.append((output, images.grad, *(p.grad for p in block.parameters()), *block.buffers()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_inference_is_in_place_and_training_is_not() -> None:
    values = torch.randn(5)
    with torch.no_grad():
        assert Activation()(before := values.clone()).data_ptr() == before.data_ptr()
    assert Activation()(values).data_ptr() != values.data_ptr()


@pytest.mark.parametrize("same_padding", [False, True])
def test_folded_norms_give_the_same_logits(same_padding: bool) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="efficientnet_b0", same_padding=same_padding), num_classes=5).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.momentum = 1.0
    images = torch.randn(4, 3, 64, 64).double().to(memory_format=torch.channels_last)
    model.train()(images)
    model.eval()
    plain = model(images)  # with gradients: norms are layers
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain, rtol=1e-9, atol=1e-9)


def test_a_1x1_convolution_keeps_the_memory_format() -> None:
    convolution = PointwiseConv2d(8, 12, 1)
    images = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    assert convolution(images).is_contiguous(memory_format=torch.channels_last)
    assert convolution(images.contiguous()).is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_gradients_have_the_weights_strides(memory_format: torch.memory_format) -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=3).to(memory_format=memory_format)  # type: ignore[call-overload]
    strides = {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: strides.update({name: gradient.stride()}))
    model(torch.randn(2, 3, 32, 32).to(memory_format=memory_format)).sum().backward()
    pointwise = {name: p.stride() for name, p in model.named_parameters() if p.shape[2:] == (1, 1)}
    assert len(pointwise) > 10
    assert {name: strides[name] for name in pointwise} == pointwise


def test_the_model_exports_without_example_dependent_paths() -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(more), model(more), rtol=1e-4, atol=1e-5)

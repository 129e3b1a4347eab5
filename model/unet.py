"""EfficientUNet: an EfficientNet's rows as the encoder, and a decoder that joins its maps from coarse to fine."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.efficientnet import EfficientNet

from model.blocks import Activation
from model.head import HeadConv2d

DECODER_CHANNELS: Mapping[int, int] = {2: 32, 4: 64, 8: 128, 16: 256}
"""Output channels of the decoder at each stride."""


class EfficientUNet(nn.Module):
    """Semantic segmentation: images [B, C, H, W] -> logits [B, K, H, W], for any size of at least the encoder's stride.

    The decoder doubles the coarsest map to each finer one's size, joins them and convolves twice; logits are made at
    stride 2 and interpolated, since convolving at full resolution would cost more than the encoder does.
    """

    def __init__(self, classifier: EfficientNet, *, num_classes: int, norm_eps: float, norm_momentum: float) -> None:
        super().__init__()
        # All but the last 1x1 convolution, which widens for the classifier's sake.
        self.encoder = classifier.features[:-1]
        strides, channels = _strides_and_channels(self.encoder)
        # The last map of each stride is joined; the coarsest is where the decoder starts.
        self.joined = [i for i in range(len(strides) - 1) if strides[i + 1] != strides[i]]
        inputs = channels[-1]
        self.decoder = nn.ModuleList()
        for index in reversed(self.joined):
            outputs = DECODER_CHANNELS[strides[index]]
            self.decoder.append(_convolutions(inputs + channels[index], outputs, norm_eps, norm_momentum))
            inputs = outputs
        self.head = HeadConv2d(inputs, num_classes, kernel_size=1)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K, H, W]."""
        x, maps = images, []
        for index, row in enumerate(self.encoder):
            x = row(x)
            if index in self.joined:
                maps.append(x)
        for level, skip in zip(self.decoder, reversed(maps), strict=True):
            x = level(torch.cat((F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip), dim=1))
        return F.interpolate(self.head(x), size=images.shape[-2:], mode="bilinear", align_corners=False)

    def encoder_state(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str], list[str]]:
        """This model's part of a classifier's weights, the names that stay fresh, and notes.

        `state` has torchvision's names; a U-Net's own weights pass through.
        """
        if not any(name.startswith("features.") for name in state):
            return state, set(), []
        last = len(self.encoder)
        kept = {
            name.replace("features.", "encoder.", 1): value
            for name, value in state.items()
            if name.startswith("features.") and int(name.split(".")[1]) < last
        }
        fresh = {name for name in self.state_dict() if not name.startswith("encoder.")}
        return kept, fresh, ["decoder and head start from random weights: the file is a classifier's"]


def _strides_and_channels(encoder: nn.Sequential) -> tuple[list[int], list[int]]:
    """Stride and channels of the map that each part of the encoder gives."""
    strides, channels, stride = [], [], 1
    for row in encoder:
        convolutions = [module for module in row.modules() if isinstance(module, nn.Conv2d)]
        stride *= max(convolution.stride[0] for convolution in convolutions)
        strides.append(stride)
        channels.append(convolutions[-1].out_channels)
    return strides, channels


def _convolutions(inputs: int, outputs: int, norm_eps: float, norm_momentum: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        layers += [convolution, nn.BatchNorm2d(outputs, norm_eps, norm_momentum), Activation()]
    return nn.Sequential(*layers)

"""`build_model(ModelConfig)`: every model by name, and its properties that are known without building it."""

from torch import nn

from model.config import TIMM_PREFIX, UNETS, ModelConfig, architecture_of
from model.efficientnet import NORM_EPS, NORM_MOMENTUM, build_efficientnet
from model.libraries import TORCHVISION, build_timm, build_torchvision, unknown_name
from model.regularization import freeze
from model.tables import ARCHITECTURES, Architecture
from model.unet import EfficientUNet


def model_names() -> tuple[str, ...]:
    """All names of classifiers but timm's; each EfficientNet's with `unet_` before it is a segmentation model."""
    return (*ARCHITECTURES, *TORCHVISION)


def build_model(config: ModelConfig, *, num_classes: int) -> nn.Module:
    """The model with fresh weights: images [B, in_channels, H, W] -> logits [B, num_classes]; a U-Net's [B, K, H, W].

    `config.init_from` is the caller's to load. Raises ValueError for an unknown name, naming the nearest ones.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: must be at least 1")
    if (architecture := architecture_of(config)) is not None:
        model = _build_rows(config, architecture, num_classes)
    elif config.name in TORCHVISION:
        model = build_torchvision(config, num_classes=num_classes)
    elif config.name.startswith(TIMM_PREFIX):
        model = build_timm(config, num_classes=num_classes)
    else:
        raise unknown_name(config.name, (*model_names(), *UNETS))
    if config.frozen:
        freeze(model)
    return model


def _build_rows(config: ModelConfig, architecture: Architecture, num_classes: int) -> nn.Module:
    norm_eps = NORM_EPS if config.norm_eps is None else config.norm_eps
    norm_momentum = NORM_MOMENTUM if config.norm_momentum is None else config.norm_momentum
    model = build_efficientnet(
        architecture,
        num_classes=num_classes,
        stochastic_depth=config.stochastic_depth,
        norm_eps=norm_eps,
        norm_momentum=norm_momentum,
        in_channels=config.in_channels,
        same_padding=config.same_padding,
        init=config.init,
    )
    if config.name in UNETS:
        return EfficientUNet(model, num_classes=num_classes, norm_eps=norm_eps, norm_momentum=norm_momentum)
    assert isinstance(model, nn.Module)
    return model

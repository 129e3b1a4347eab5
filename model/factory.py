"""`build_model(ModelConfig)`: every model by name, and the two rates that follow the training stage."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import cast

import torch
from torch import nn
from torchvision.models import resnet, swin_transformer
from torchvision.ops import StochasticDepth

from model.efficientnet import NORM_EPS, NORM_MOMENTUM, build_efficientnet
from model.head import HeadLinear, replace_linear, replace_stem
from model.tables import ARCHITECTURES, Architecture, fused_variant

TIMM_PREFIX = "timm/"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model, and what of it does not change from stage to stage."""

    name: str = "efficientnet_v2_s"
    """Model by name: efficientnet_b0..b7, efficientnet_v2_{s,m,l,xl,b0,b1,b2,b3,tiny}, efficientnet_lite0,
    swin_{t,s,b}, swin_v2_{t,s,b}, resnet{50,152}, or timm/NAME when timm is installed."""
    in_channels: int = 3
    """Channels of the images."""
    fused_rows: tuple[int, ...] = ()
    """Rows of the architecture table, counted from 1, whose MBConv becomes Fused-MBConv as in the paper's ablation."""
    same_padding: bool = False
    """Pad as TensorFlow does, unevenly where stride 2 meets an even size. For weights that come from TensorFlow."""
    stochastic_depth: float = 0.2
    """Drop probability of the last residual block, growing linearly from 0 at the first; 1 - the paper's survival
    probability. ResNets have none and ignore it."""
    norm_momentum: float | None = None
    """Batch-norm momentum as PyTorch has it (1 - TensorFlow's decay). None: 0.01 for EfficientNets (the paper's 0.99;
    the released V2 code's 0.9 is 0.1 here), the library's own for all others."""
    norm_eps: float | None = None
    """Batch-norm epsilon. None: 1e-3 for EfficientNets (the authors'), the library's own for all others. torchvision's
    weights of B0-B4 were trained with 1e-5."""
    init_from: str | None = None
    """Weights to start from: path or s3:// URI of a safetensors or PyTorch file, or a run's checkpoint. A classifier of
    another class count is initialized anew."""

    def __post_init__(self) -> None:
        if self.in_channels < 1:
            raise ValueError(f"in_channels={self.in_channels}: must be at least 1")
        if self.name not in ARCHITECTURES and (self.fused_rows or self.same_padding):
            raise ValueError(f"name={self.name}: fused_rows and same_padding are for the EfficientNets only")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth={self.stochastic_depth}: must be in [0, 1)")
        if self.norm_momentum is not None and not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum={self.norm_momentum}: must be in (0, 1], or None for the model's own")
        if self.norm_eps is not None and self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps}: must be above 0, or None for the model's own")


_Builder = Callable[..., nn.Module]
_TORCHVISION: dict[str, _Builder] = {
    "resnet50": resnet.resnet50,
    "resnet152": resnet.resnet152,
    "swin_t": swin_transformer.swin_t,
    "swin_s": swin_transformer.swin_s,
    "swin_b": swin_transformer.swin_b,
    "swin_v2_t": swin_transformer.swin_v2_t,
    "swin_v2_s": swin_transformer.swin_v2_s,
    "swin_v2_b": swin_transformer.swin_v2_b,
}


def model_names() -> tuple[str, ...]:
    """All names but timm's."""
    return (*ARCHITECTURES, *_TORCHVISION)


def build_model(config: ModelConfig, *, num_classes: int) -> nn.Module:
    """The model with fresh weights: images [B, in_channels, H, W] -> logits [B, num_classes].

    Raises ValueError for an unknown name, naming the nearest ones.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: must be at least 1")
    if config.name in ARCHITECTURES:
        model = _build_rows(config, num_classes)
    elif config.name in _TORCHVISION:
        model = _build_torchvision(config, num_classes)
    elif config.name.startswith(TIMM_PREFIX):
        model = _build_timm(config, num_classes)
    else:
        raise _unknown_name(config.name, model_names())
    return model


def check_model(config: ModelConfig) -> None:
    """Raise what `build_model` would raise for this config, without memory or time being spent on weights."""
    with torch.device("meta"):
        build_model(config, num_classes=2)


def check_image_size(config: ModelConfig, size: int) -> None:
    """Raise ValueError if images of side `size` pixels can't go through the model, naming the nearest that can."""
    stride = 32
    if config.name in ARCHITECTURES:
        stride = architecture_of(config).stride
    if size < stride:
        raise ValueError(
            f"image_size={size}: {config.name} has a total stride of {stride}, so {stride} is the smallest"
        )
    if config.name.startswith("swin") and size % stride:
        below = size // stride * stride
        raise ValueError(
            f"image_size={size}: {config.name} needs a multiple of {stride}, whole windows of patches at every depth;"
            f" nearest: {below} and {below + stride}"
        )


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the rate of the dropout before the classifier, on the live model. Other dropouts stay as they are."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate}: must be in [0, 1)")
    for module in model.modules():
        if isinstance(module, HeadLinear):
            module.dropout = rate


def set_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Set the last residual block's drop probability to `rate` and scale all others with it, on the live model."""
    if not 0 <= rate < 1:
        raise ValueError(f"stochastic_depth={rate}: must be in [0, 1)")
    drops = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    # EfficientNets count depth as index / count, Swin as index / (count - 1); both authors' rules.
    last = max(1, len(drops) - isinstance(model, swin_transformer.SwinTransformer))
    for index, module in enumerate(drops):
        module.p = rate * index / last


def architecture_of(config: ModelConfig) -> Architecture:
    """The rows of the EfficientNet that `config` names."""
    return fused_variant(config.name, config.fused_rows) if config.fused_rows else ARCHITECTURES[config.name]


def _build_rows(config: ModelConfig, num_classes: int) -> nn.Module:
    model = build_efficientnet(
        architecture_of(config),
        num_classes=num_classes,
        stochastic_depth=config.stochastic_depth,
        norm_eps=NORM_EPS if config.norm_eps is None else config.norm_eps,
        norm_momentum=NORM_MOMENTUM if config.norm_momentum is None else config.norm_momentum,
        in_channels=config.in_channels,
        same_padding=config.same_padding,
    )
    return cast(nn.Module, model)


def _build_torchvision(config: ModelConfig, num_classes: int) -> nn.Module:
    build = _TORCHVISION[config.name]
    if config.name.startswith("resnet"):
        model = build(num_classes=num_classes, norm_layer=_batch_norm(config))
        replace_linear(model, "fc", dropout=0.0)
        stem = "conv1"
    else:
        model = build(num_classes=num_classes)
        set_stochastic_depth(model, config.stochastic_depth)
        replace_linear(model, "head", dropout=0.0)
        stem = "features.0.0"
    if config.in_channels != 3:
        replace_stem(model, stem, config.in_channels)
    return model


def _batch_norm(config: ModelConfig) -> Callable[..., nn.Module]:
    return partial(
        nn.BatchNorm2d,
        eps=1e-5 if config.norm_eps is None else config.norm_eps,
        momentum=0.1 if config.norm_momentum is None else config.norm_momentum,
    )


def _build_timm(config: ModelConfig, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ValueError(f"name={config.name}: timm is not installed; `uv pip install timm` adds it") from None
    name = config.name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        raise _unknown_name(name, timm.list_models(), TIMM_PREFIX)
    options = {"bn_eps": config.norm_eps, "bn_momentum": config.norm_momentum}
    if config.stochastic_depth:
        options["drop_path_rate"] = config.stochastic_depth
    try:
        model = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=config.in_channels, **options
        )
    except TypeError as error:
        raise ValueError(f"name={config.name}: {error}; set that option to its default for this model") from error
    head = model.get_classifier()
    for path, module in model.named_modules():
        if module is head and isinstance(module, nn.Linear):
            replace_linear(model, path, dropout=0.0)
            break
    return cast(nn.Module, model)


def _unknown_name(name: str, known: tuple[str, ...] | list[str], prefix: str = "") -> ValueError:
    nearest = get_close_matches(name, known, n=3, cutoff=0.4) or known
    return ValueError(f"name={prefix}{name}: no such model; nearest: {', '.join(prefix + n for n in nearest)}")

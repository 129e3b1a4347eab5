"""Models of torchvision and timm, unchanged except for the parts that depend on the task."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torchvision.models import resnet, swin_transformer

from model.config import SWIN_MINI, TIMM_PREFIX, ModelConfig
from model.head import replace_linear, replace_stem
from model.regularization import set_stochastic_depth
from model.swin import attend_to_images_only


def _swin_mini(width: int, **options: Any) -> nn.Module:
    # Three levels instead of four, and windows of 4: a last map of 2x2 at 32 px, as efficientnet_v2_tiny has.
    heads = [width // 8 * factor for factor in (1, 2, 4)]
    return swin_transformer.SwinTransformer(
        patch_size=[4, 4], embed_dim=width, depths=[1, 2, 2], num_heads=heads, window_size=[4, 4], **options
    )


TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    "resnet50": resnet.resnet50,
    "resnet152": resnet.resnet152,
    "swin_t": swin_transformer.swin_t,
    "swin_s": swin_transformer.swin_s,
    "swin_b": swin_transformer.swin_b,
    "swin_v2_t": swin_transformer.swin_v2_t,
    "swin_v2_s": swin_transformer.swin_v2_s,
    "swin_v2_b": swin_transformer.swin_v2_b,
    **{name: partial(_swin_mini, width) for name, width in SWIN_MINI.items()},
}


def build_torchvision(config: ModelConfig, *, num_classes: int) -> nn.Module:
    """A ResNet or Swin of torchvision; Swin's attention leaves padding out."""
    build = TORCHVISION[config.name]
    if config.name.startswith("resnet"):
        model = build(num_classes=num_classes, norm_layer=_batch_norm(config))
        head, stem = "fc", "conv1"
    else:
        model = build(num_classes=num_classes)
        set_stochastic_depth(model, config.stochastic_depth)
        attend_to_images_only(model)
        head, stem = "head", "features.0.0"
    replace_linear(model, head, dropout=0.0)
    if config.in_channels != 3:
        replace_stem(model, stem, config.in_channels)
    return model


def _batch_norm(config: ModelConfig) -> Callable[..., nn.Module]:
    return partial(
        nn.BatchNorm2d,
        eps=1e-5 if config.norm_eps is None else config.norm_eps,
        momentum=0.1 if config.norm_momentum is None else config.norm_momentum,
    )


def build_timm(config: ModelConfig, *, num_classes: int) -> nn.Module:
    """A timm model with fresh weights. Raises ValueError if there is none of that name or it lacks an option."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"name={config.name}: timm is not installed; `uv pip install timm` adds it") from None
    name = config.name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        raise unknown_name(name, timm.list_models(), TIMM_PREFIX)
    options: dict[str, Any] = {"bn_eps": config.norm_eps, "bn_momentum": config.norm_momentum}
    if config.stochastic_depth:
        options["drop_path_rate"] = config.stochastic_depth
    create = partial(timm.create_model, name, num_classes=num_classes, in_chans=config.in_channels, **options)
    try:
        try:  # a vision transformer's positions then follow the stage's image size
            model = create(dynamic_img_size=True)
        except TypeError:
            model = create()
    except TypeError as error:
        raise ValueError(f"name={config.name}: {_explained(error, config)}") from error
    head = model.get_classifier()
    path = next((path for path, module in model.named_modules() if module is head), None)
    if path is None or not isinstance(head, nn.Linear):
        raise ValueError(f"name={config.name}: its classifier is not one linear layer, which the task needs to set")
    replace_linear(model, path, dropout=0.0)
    return cast(nn.Module, model)


_OPTIONS = {
    "bn_eps": ("norm_eps", None),
    "bn_momentum": ("norm_momentum", None),
    "drop_path_rate": ("stochastic_depth", 0),
}


def _explained(error: TypeError, config: ModelConfig) -> str:
    """Return which of our fields a timm model doesn't take."""
    for option, (field, off) in _OPTIONS.items():
        if f"'{option}'" in str(error):
            return f"it takes no {field}={getattr(config, field)}; give --model.{field.replace('_', '-')} {off}"
    return str(error)


def timm_takes(config: ModelConfig) -> tuple[Callable[[int, int], bool], int]:
    """Return what says whether a timm model takes images of a height and a width, and the size that it was made for."""
    with torch.device("meta"):
        model = build_timm(config, num_classes=2).eval()

    def takes(height: int, width: int) -> bool:
        try:
            with torch.no_grad():
                model(torch.empty(2, config.in_channels, height, width, device="meta"))
        except (AssertionError, RuntimeError, ValueError):
            return False
        return True

    return takes, cast(Any, model).pretrained_cfg["input_size"][-1]


def unknown_name(name: str, known: Sequence[str], prefix: str = "") -> ValueError:
    """The error for a model name that doesn't exist, with the nearest that do."""
    nearest = get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    return ValueError(f"name={prefix}{name}: no such model; nearest: {', '.join(prefix + other for other in nearest)}")

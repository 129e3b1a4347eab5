"""The driver's checks of a model's config. They build models, which the config itself never does."""

from __future__ import annotations

from model.config import TIMM_PREFIX, ModelConfig, architecture_of, swin_stride


def check_model(config: ModelConfig) -> None:
    """Raise what `build_model` would raise for this config, without memory or time being spent on weights."""
    if architecture_of(config) is not None:
        return  # rows are rows; only the libraries' models must be asked
    import torch

    from model.factory import build_model

    with torch.device("meta"):
        build_model(config, num_classes=2)


def check_image_size(config: ModelConfig, size: int) -> None:
    """Raise ValueError if images of side `size` pixels can't go through the model, naming the nearest that can."""
    if config.name.startswith(TIMM_PREFIX):
        from model.libraries import check_timm_size

        check_timm_size(config, size)
        return
    architecture = architecture_of(config)
    stride = architecture.stride if architecture else swin_stride(config.name)
    if size < stride:
        raise ValueError(
            f"image_size={size}: {config.name} has a total stride of {stride}, so {stride} is the smallest"
        )
    if config.name.startswith("swin") and size % stride:
        below = size // stride * stride
        raise ValueError(
            f"image_size={size}: {config.name} needs a multiple of {stride}, whole patches at every depth;"
            f" nearest: {below} and {below + stride}"
        )

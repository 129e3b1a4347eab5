"""The driver's checks of a model's config. They build models, which the config itself never does."""

from __future__ import annotations

from collections.abc import Callable

from model.config import TIMM_PREFIX, ModelConfig, architecture_of, swin_stride

ShapeOf = Callable[[int], tuple[int, int]]
"""From an image size to height and width, in pixels."""


def square(size: int) -> tuple[int, int]:
    """Return height and width of a square."""
    return size, size


def check_model(config: ModelConfig) -> None:
    """Raise what `build_model` would raise for this config, without memory or time being spent on weights."""
    if architecture_of(config) is not None:
        return  # rows are rows; only the libraries' models must be asked
    import torch

    from model.factory import build_model

    with torch.device("meta"):
        build_model(config, num_classes=2)


def check_image_size(config: ModelConfig, size: int, shape_of: ShapeOf = square) -> None:
    """Raise ValueError if images of a size can't go through the model, naming the nearest that can.

    Args:
        config: the model.
        size: the image size, in pixels.
        shape_of: what height and width an image size means.
    """
    if config.name.startswith(TIMM_PREFIX):
        from model.libraries import timm_takes

        (takes, own), why, far = timm_takes(config), "does not take it", 33
    else:
        architecture = architecture_of(config)
        stride = architecture.stride if architecture else swin_stride(config.name)
        if min(shape_of(size)) < stride:
            raise ValueError(
                f"image_size={size}: {config.name} has a total stride of {stride}, so {stride} is the smallest"
            )
        if not config.name.startswith("swin"):
            return
        own, why, far = 0, f"needs a multiple of {stride}, whole patches at every depth", 400

        def takes(height: int, width: int) -> bool:
            return min(height, width) >= stride and not (height % stride or width % stride)

    height, width = shape_of(size)
    if takes(height, width):
        return
    shown = "" if height == width else f" is {width}x{height} px"
    nearest = [
        next((other for other in sizes if takes(*shape_of(other))), 0)
        for sizes in (range(size - 1, max(0, size - far), -1), range(size + 1, size + far))
    ]
    working = [other for other in nearest if other] or [own] * (own > 0 and takes(*shape_of(own)))
    named = " and ".join(map(str, working)) or "none at this data.aspect_ratio"
    raise ValueError(f"image_size={size}{shown}: {config.name} {why}; nearest: {named}")

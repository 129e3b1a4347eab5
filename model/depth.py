"""The depth of each weight, from the stem to the head: what layer-wise learning rates follow."""

from __future__ import annotations

from typing import Any

from torch import nn


def layer_of_parameters(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer by name: 0 is the stem, the largest the head.

    A timm model says it itself. Elsewhere a layer is a block, or a weight outside of the blocks with the norms that
    follow it, in the order in which the model has them.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        return {
            name: int(layer) for name, layer in group_parameters(model, matcher(coarse=False), reverse=True).items()
        }
    layers, layer, previous = dict[str, int](), -1, ""
    has_weight = {_unit(name) for name, parameter in model.named_parameters() if parameter.ndim > 1}
    for name, _ in model.named_parameters():
        unit = _unit(name)
        if layer < 0 or (unit != previous and unit in has_weight):
            layer += 1
        layers[name], previous = layer, unit
    return layers


def _unit(name: str) -> str:
    """Return the part of a name that stands for a block or layer: `features.3.2` of `features.3.2.block.0.0.weight`."""
    first, *others = name.split(".")[:-1]
    numbers = 0
    while numbers < len(others) and others[numbers].isdigit():
        numbers += 1
    return ".".join((first, *others[:numbers]))

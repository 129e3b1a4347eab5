"""Loads weights from a file into a model: by name, in three naming schemes, reporting every difference.

The models' own names are torchvision's. EfficientNet weights may also have timm's names (`conv_stem`,
`blocks.1.0.conv_pw`) or those of the package efficientnet-pytorch (`_conv_stem`, `_blocks.1._expand_conv`).
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.efficientnet import FusedMBConv, MBConv

from model.head import TaskHead
from model.unet import EfficientUNet

StateDict = dict[str, Tensor]

# Wrappers that a saved model may have been in, and dictionaries that it may be inside of.
_PREFIXES = ("module.", "_orig_mod.")
_ENVELOPES = ("model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model")
_LISTED = 8


class WeightsError(ValueError):
    """A file of weights can't be read or doesn't fit the model."""


def read_weights(path: str | Path) -> StateDict:
    """The tensors of a local safetensors or PyTorch file by name; nothing is unpickled but tensors and containers."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: not a safetensors file nor a PyTorch file of weights only: {reason}") from error
    return _unwrapped(content, path)


def _unwrapped(content: object, path: Path) -> StateDict:
    while isinstance(content, Mapping) and (key := next((key for key in _ENVELOPES if key in content), None)):
        content = content[key]
    items = content.items() if isinstance(content, Mapping) else ()
    state = {str(name): value for name, value in items if isinstance(value, Tensor)}
    state.pop("n_averaged", None)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not state:
        raise WeightsError(f"{path}: holds no weights by name")
    return state


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Copy `state_dict` into `model` by name; returns notes on what was changed, a line each.

    A classifier of another class count keeps the model's fresh weights. A first convolution of another channel count is
    summed and spread over the channels, so that an image with the same grey in all channels gives the same response. A
    U-Net takes a classifier's weights into its encoder. All of these are noted.

    Raises WeightsError listing every other weight that is missing, left over or of another shape.
    """
    state = _own_names(model, dict(state_dict))
    notes: list[str] = []
    fresh: set[str] = set()
    if isinstance(model, EfficientUNet):
        state, fresh, notes = model.encoder_state(state)
    notes += _adapt_stem(model, state)
    notes += _leave_changed_head(model, state, fresh)
    _check_complete(model, state, fresh)
    model.load_state_dict(state, strict=False)
    return notes


def _adapt_stem(model: nn.Module, state: StateDict) -> list[str]:
    convolutions = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    name, stem = next(convolutions, ("", None))
    key = f"{name}.weight"
    weight = state.get(key)
    if stem is None or weight is None or weight.shape[1] == stem.in_channels:
        return []
    if weight.shape[0] != stem.out_channels or weight.shape[2:] != stem.weight.shape[2:]:
        return []
    state[key] = weight.sum(1, keepdim=True).expand(stem.weight.shape) / stem.in_channels
    return [f"{key}: {weight.shape[1]} image channels in the file, {stem.in_channels} here: summed and spread evenly"]


def _leave_changed_head(model: nn.Module, state: StateDict, fresh: set[str]) -> list[str]:
    notes = []
    for name, head in model.named_modules():
        weight = state.get(f"{name}.weight")
        if isinstance(head, TaskHead) and weight is not None and weight.shape[0] != head.weight.shape[0]:
            classes, here = weight.shape[0], head.weight.shape[0]
            notes.append(f"{name}: {classes} classes in the file, {here} here: starts from random weights")
            for parameter in ("weight", "bias"):
                fresh.add(f"{name}.{parameter}")
                state.pop(f"{name}.{parameter}", None)
    return notes


def _check_complete(model: nn.Module, state: StateDict, fresh: set[str]) -> None:
    own = model.state_dict()
    # Derived from the architecture, and absent from files of some versions.
    derived = ("num_batches_tracked", "relative_position_index", "relative_coords_table")
    missing = [name for name in own if name not in state and name not in fresh and not name.endswith(derived)]
    left_over = [name for name in state if name not in own]
    reshaped = [
        f"{name} {list(value.shape)} instead of {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = {"missing": missing, "left over": left_over, "of another shape": reshaped}
    found = "; ".join(f"{kind}: {_listing(names)}" for kind, names in problems.items() if names)
    if found:
        raise WeightsError(f"the weights are of another model: {found}")


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def _own_names(model: nn.Module, state: StateDict) -> StateDict:
    if "conv_stem.weight" in state:
        scheme = 1
    elif "_conv_stem.weight" in state:
        scheme = 2
    else:
        return state
    if "conv_stem.weight" in model.state_dict():  # timm's own model
        return state
    renamed = {names[scheme]: names[0] for names in module_names(model)}
    return {_renamed(name, renamed): value for name, value in state.items()}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{leaf}" if module in modules else name


# Modules of a block: (ours and torchvision's, timm's, efficientnet-pytorch's), by kind and by whether it expands.
_BLOCK_NAMES: dict[tuple[type[nn.Module], bool], tuple[tuple[str, str, str], ...]] = {
    (MBConv, True): (
        ("0.0", "conv_pw", "_expand_conv"),
        ("0.1", "bn1", "_bn0"),
        ("1.0", "conv_dw", "_depthwise_conv"),
        ("1.1", "bn2", "_bn1"),
        ("2.fc1", "se.conv_reduce", "_se_reduce"),
        ("2.fc2", "se.conv_expand", "_se_expand"),
        ("3.0", "conv_pwl", "_project_conv"),
        ("3.1", "bn3", "_bn2"),
    ),
    (MBConv, False): (
        ("0.0", "conv_dw", "_depthwise_conv"),
        ("0.1", "bn1", "_bn1"),
        ("1.fc1", "se.conv_reduce", "_se_reduce"),
        ("1.fc2", "se.conv_expand", "_se_expand"),
        ("2.0", "conv_pw", "_project_conv"),
        ("2.1", "bn2", "_bn2"),
    ),
    (FusedMBConv, True): (
        ("0.0", "conv_exp", "_expand_conv"),
        ("0.1", "bn1", "_bn0"),
        ("1.0", "conv_pwl", "_project_conv"),
        ("1.1", "bn2", "_bn1"),
    ),
    (FusedMBConv, False): (("0.0", "conv", "_project_conv"), ("0.1", "bn1", "_bn1")),
}


def module_names(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(own name, timm's, efficientnet-pytorch's) of each module with weights of an EfficientNet or U-Net encoder."""
    rows: Any = model.encoder if isinstance(model, EfficientUNet) else model.features
    yield from (("features.0.0", "conv_stem", "_conv_stem"), ("features.0.1", "bn1", "_bn0"))
    count = 0
    blocks = [(i, j, block) for i, row in enumerate(rows) for j, block in enumerate(row) if hasattr(block, "block")]
    for count, (row, layer, block) in enumerate(blocks):
        kind = MBConv if isinstance(block, MBConv) else FusedMBConv
        expands = len(block.block) == (4 if kind is MBConv else 2)
        for ours, timm, flat in _BLOCK_NAMES[kind, expands]:
            yield (
                f"features.{row}.{layer}.block.{ours}",
                f"blocks.{row - 1}.{layer}.{timm}",
                f"_blocks.{count}.{flat}",
            )
    last = blocks[-1][0] + 1
    yield from ((f"features.{last}.0", "conv_head", "_conv_head"), (f"features.{last}.1", "bn2", "_bn1"))
    yield ("classifier.1", "classifier", "_fc")

"""Compares the outputs of our models with the libraries' models of the same name and weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchvision import models

from model.config import ModelConfig
from model.factory import build_model
from model.weights import load_weights

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-10}
"""Largest difference of logits that is rounding, as a share of their spread. In float32 how much that is depends on the
processor's kernels and grows with depth (6e-5 on one machine); what a mistake would hide in there, float64 shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One of our models compared with a library's."""

    name: str
    library: str
    theirs: str
    """The library's name of the model."""
    image_size: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig` in which the library's model differs from the papers'."""


# torchvision and timm keep PyTorch's epsilon in V1 up to B4; timm's `tf_` models pad as TensorFlow does.
CASES = (
    Case(
        name="efficientnet_b0",
        library="torchvision",
        theirs="efficientnet_b0",
        image_size=96,
        fields={"norm_eps": 1e-5},
    ),
    Case(name="efficientnet_v2_s", library="torchvision", theirs="efficientnet_v2_s", image_size=96),
    Case(name="swin_t", library="torchvision", theirs="swin_t", image_size=224),
    Case(name="efficientnet_b0", library="timm", theirs="efficientnet_b0", image_size=96, fields={"norm_eps": 1e-5}),
    Case(
        name="efficientnet_v2_b0",
        library="timm",
        theirs="tf_efficientnetv2_b0",
        image_size=96,
        fields={"same_padding": True},
    ),
    Case(
        name="efficientnet_v2_s",
        library="timm",
        theirs="tf_efficientnetv2_s",
        image_size=96,
        fields={"same_padding": True},
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far our logits are from the library's, as a share of their spread (standard deviation)."""

    case: Case
    float32: float
    float64: float

    @property
    def holds(self) -> bool:
        """Whether the differences are rounding."""
        return self.float32 <= ROUNDING[torch.float32] and self.float64 <= ROUNDING[torch.float64]


def compare_all() -> Iterator[Agreement]:
    """Compare the models of `CASES`, one after the other.

    Raises:
        ValueError: timm is not installed.
    """
    for case in CASES:
        source = with_real_statistics(_libraries()[case.library](case.theirs), case.image_size)
        ours = build_model(ModelConfig(name=case.name, **case.fields), num_classes=1000)
        load_weights(ours, source.state_dict())
        single, double = (largest_difference(ours, source, case.image_size, kind) for kind in ROUNDING)
        yield Agreement(case=case, float32=single, float64=double)


def _libraries() -> dict[str, Callable[[str], nn.Module]]:
    try:
        import timm
    except ImportError:
        raise ValueError(
            "timm, which the logits are compared with, is not installed; `uv pip install timm` adds it"
        ) from None
    return {"torchvision": models.get_model, "timm": timm.create_model}


def with_real_statistics(model: nn.Module, image_size: int) -> nn.Module:
    """Give norms the statistics of a batch: fresh ones would hide a swap, random ones let rounding errors grow."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, image_size, image_size, generator=generator))
    return model.eval()


def largest_difference(ours: nn.Module, source: nn.Module, image_size: int, kind: torch.dtype = torch.float64) -> float:
    """Return that of the logits of two images, as a share of their spread.

    In float64, rounding can't be taken for a small mistake.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, image_size, image_size, generator=generator).to(kind)
    with torch.no_grad():
        own, expected = ours.to(kind).eval()(images), source.to(kind).eval()(images)
    return ((own - expected).abs().max() / expected.std()).item()

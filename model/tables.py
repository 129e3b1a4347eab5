"""The architecture tables: rows that can be compared with the papers' tables by eye.

Sources: EfficientNet (arXiv 1905.11946, table 1 and the released scaling coefficients), EfficientNet-Lite (released
code), EfficientNetV2 (arXiv 2104.00298, table 4 and the released code for M, L, XL and B0-B3).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Literal

Operator = Literal["MBConv", "Fused-MBConv"]


@dataclass(frozen=True, slots=True)
class Block:
    """One row of an architecture table: `layers` equal blocks, of which the first has the stride."""

    operator: Operator
    """The kind of block."""
    expansion: int
    """Inner channels over input channels."""
    kernel: int
    """Side of the spatial convolution, in pixels."""
    stride: int
    """Stride of the row's first block; 1 or 2."""
    channels: int
    """Output channels."""
    layers: int
    """How many blocks the row repeats."""
    se: float = 0.0
    """Squeeze-and-excitation channels over the block's input channels; 0 (none) or 0.25."""

    def __post_init__(self) -> None:
        if self.operator not in ("MBConv", "Fused-MBConv"):
            raise ValueError(f"operator={self.operator!r}: must be MBConv or Fused-MBConv")
        if self.stride not in (1, 2):
            raise ValueError(f"stride={self.stride}: must be 1 or 2")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: must be odd and at least 1")
        if min(self.expansion, self.channels, self.layers) < 1:
            raise ValueError(f"{self}: expansion, channels and layers must be at least 1")
        if self.se not in ((0.0, 0.25) if self.operator == "MBConv" else (0.0,)):
            raise ValueError(f"se={self.se}: must be 0 or 0.25, and 0 in a Fused-MBConv row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A whole network: stem convolution (3x3, stride 2), rows, 1x1 convolution, pooling, classifier."""

    name: str
    """The name by which `build_model` knows it."""
    stem: int
    """Channels of the stem convolution."""
    blocks: tuple[Block, ...]
    """The rows, in order."""
    head: int
    """Channels of the last 1x1 convolution, the classifier's input."""
    train_size: int
    """Largest training image side of the released settings, in pixels."""
    eval_size: int
    """Evaluation image side of the released settings, in pixels; the published multiply-adds are at this size."""
    dropout: float
    """Dropout rate of the released settings, before the classifier."""
    activation: Literal["silu", "relu6"] = "silu"
    """Activation after every normalization but a block's last."""

    @property
    def stride(self) -> int:
        """Input pixels, along a side, of one position of the last feature map."""
        return 2 * prod(block.stride for block in self.blocks)


def round_channels(channels: float, *, never_below: float = 0.9) -> int:
    """Nearest multiple of 8; the next one if that is below `never_below` of it (the papers' rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < never_below * channels else rounded


def scale(
    blocks: tuple[Block, ...],
    *,
    width: float,
    depth: float,
    never_below: float = 0.9,
    fixed_ends: bool = False,
) -> tuple[Block, ...]:
    """Rows with channels times `width`, layers times `depth` (rounded up; not the outer rows' if `fixed_ends`)."""

    def layers(index: int, block: Block) -> int:
        return block.layers if fixed_ends and index in (0, len(blocks) - 1) else ceil(depth * block.layers)

    return tuple(
        replace(
            block,
            channels=round_channels(block.channels * width, never_below=never_below),
            layers=layers(index, block),
        )
        for index, block in enumerate(blocks)
    )


# fmt: off
#              operator        e  k  s  channels, layers, se
_V1 = (
    Block("MBConv",        1, 3, 1,  16,  1, 0.25),
    Block("MBConv",        6, 3, 2,  24,  2, 0.25),
    Block("MBConv",        6, 5, 2,  40,  2, 0.25),
    Block("MBConv",        6, 3, 2,  80,  3, 0.25),
    Block("MBConv",        6, 5, 1, 112,  3, 0.25),
    Block("MBConv",        6, 5, 2, 192,  4, 0.25),
    Block("MBConv",        6, 3, 1, 320,  1, 0.25),
)
_LITE = tuple(replace(block, se=0.0) for block in _V1)

_V2_BASE = (
    Block("Fused-MBConv",  1, 3, 1,  16,  1),
    Block("Fused-MBConv",  4, 3, 2,  32,  2),
    Block("Fused-MBConv",  4, 3, 2,  48,  2),
    Block("MBConv",        4, 3, 2,  96,  3, 0.25),
    Block("MBConv",        6, 3, 1, 112,  5, 0.25),
    Block("MBConv",        6, 3, 2, 192,  8, 0.25),
)
_V2_S = (
    Block("Fused-MBConv",  1, 3, 1,  24,  2),
    Block("Fused-MBConv",  4, 3, 2,  48,  4),
    Block("Fused-MBConv",  4, 3, 2,  64,  4),
    Block("MBConv",        4, 3, 2, 128,  6, 0.25),
    Block("MBConv",        6, 3, 1, 160,  9, 0.25),
    Block("MBConv",        6, 3, 2, 256, 15, 0.25),
)
_V2_M = (
    Block("Fused-MBConv",  1, 3, 1,  24,  3),
    Block("Fused-MBConv",  4, 3, 2,  48,  5),
    Block("Fused-MBConv",  4, 3, 2,  80,  5),
    Block("MBConv",        4, 3, 2, 160,  7, 0.25),
    Block("MBConv",        6, 3, 1, 176, 14, 0.25),
    Block("MBConv",        6, 3, 2, 304, 18, 0.25),
    Block("MBConv",        6, 3, 1, 512,  5, 0.25),
)
_V2_L = (
    Block("Fused-MBConv",  1, 3, 1,  32,  4),
    Block("Fused-MBConv",  4, 3, 2,  64,  7),
    Block("Fused-MBConv",  4, 3, 2,  96,  7),
    Block("MBConv",        4, 3, 2, 192, 10, 0.25),
    Block("MBConv",        6, 3, 1, 224, 19, 0.25),
    Block("MBConv",        6, 3, 2, 384, 25, 0.25),
    Block("MBConv",        6, 3, 1, 640,  7, 0.25),
)
_V2_XL = (
    Block("Fused-MBConv",  1, 3, 1,  32,  4),
    Block("Fused-MBConv",  4, 3, 2,  64,  8),
    Block("Fused-MBConv",  4, 3, 2,  96,  8),
    Block("MBConv",        4, 3, 2, 192, 16, 0.25),
    Block("MBConv",        6, 3, 1, 256, 24, 0.25),
    Block("MBConv",        6, 3, 2, 512, 32, 0.25),
    Block("MBConv",        6, 3, 1, 640,  8, 0.25),
)
# Not of a paper: a V2 of a million parameters for small images on a CPU. Its last stride is 16, so that a 32-pixel
# image still has 2x2 positions at the end.
_V2_TINY = (
    Block("Fused-MBConv",  1, 3, 1,  16,  1),
    Block("Fused-MBConv",  4, 3, 2,  32,  2),
    Block("Fused-MBConv",  4, 3, 2,  48,  2),
    Block("MBConv",        4, 3, 2,  96,  3, 0.25),
    Block("MBConv",        6, 3, 1, 112,  2, 0.25),
)
# fmt: on


def _v1(name: str, width: float, depth: float, size: int, dropout: float) -> Architecture:
    return Architecture(
        name=name,
        stem=round_channels(32 * width),
        blocks=scale(_V1, width=width, depth=depth),
        head=round_channels(1280 * width),
        train_size=size,
        eval_size=size,
        dropout=dropout,
    )


def _v2_base(name: str, width: float, depth: float, train_size: int, eval_size: int, dropout: float) -> Architecture:
    # The released V2 code rounds to the nearest multiple without V1's 90 % rule.
    return Architecture(
        name=name,
        stem=round_channels(32 * width, never_below=0),
        blocks=scale(_V2_BASE, width=width, depth=depth, never_below=0),
        head=round_channels(1280 * width, never_below=0),
        train_size=train_size,
        eval_size=eval_size,
        dropout=dropout,
    )


def _v2(
    name: str, blocks: tuple[Block, ...], train_size: int, eval_size: int, dropout: float, head: int = 1280
) -> Architecture:
    # The stem has the first row's channels, as in table 4.
    return Architecture(
        name=name,
        stem=blocks[0].channels,
        blocks=blocks,
        head=head,
        train_size=train_size,
        eval_size=eval_size,
        dropout=dropout,
    )


def _lite(name: str, width: float, depth: float, size: int, dropout: float) -> Architecture:
    # Lite models scale the inner rows only: stem, head and the outer rows' layers stay.
    return Architecture(
        name=name,
        stem=32,
        blocks=scale(_LITE, width=width, depth=depth, fixed_ends=True),
        head=1280,
        train_size=size,
        eval_size=size,
        dropout=dropout,
        activation="relu6",
    )


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        #   name               width depth size dropout
        _v1("efficientnet_b0", 1.0, 1.0, 224, 0.2),
        _v1("efficientnet_b1", 1.0, 1.1, 240, 0.2),
        _v1("efficientnet_b2", 1.1, 1.2, 260, 0.3),
        _v1("efficientnet_b3", 1.2, 1.4, 300, 0.3),
        _v1("efficientnet_b4", 1.4, 1.8, 380, 0.4),
        _v1("efficientnet_b5", 1.6, 2.2, 456, 0.4),
        _v1("efficientnet_b6", 1.8, 2.6, 528, 0.5),
        _v1("efficientnet_b7", 2.0, 3.1, 600, 0.5),
        #     name                 width depth size dropout
        _lite("efficientnet_lite0", 1.0, 1.0, 224, 0.2),
        #        name                  width depth train eval dropout
        _v2_base("efficientnet_v2_b0", 1.0, 1.0, 192, 224, 0.2),
        _v2_base("efficientnet_v2_b1", 1.0, 1.1, 192, 240, 0.2),
        _v2_base("efficientnet_v2_b2", 1.1, 1.2, 208, 260, 0.3),
        _v2_base("efficientnet_v2_b3", 1.2, 1.4, 240, 300, 0.3),
        #   name                  rows   train eval dropout
        _v2("efficientnet_v2_s", _V2_S, 300, 384, 0.2),
        _v2("efficientnet_v2_m", _V2_M, 384, 480, 0.3),
        _v2("efficientnet_v2_l", _V2_L, 384, 480, 0.4),
        _v2("efficientnet_v2_xl", _V2_XL, 384, 512, 0.4),
        _v2("efficientnet_v2_tiny", _V2_TINY, 128, 128, 0.1, head=512),
    )
}

ABLATION_KERNELS: Mapping[int, int] = {3: 3}
"""Kernels of the paper's Fused-MBConv ablation where they aren't B4's own. The paper doesn't print them; its
multiply-adds fit a 3x3 kernel in the third row to 3 %, and no other choice as well (`jobs.models` prints both)."""


def fused_variant(name: str, stages: Collection[int]) -> Architecture:
    """The architecture `name` with Fused-MBConv in place of MBConv in rows `stages`, counted from 1 (the stem is 0).

    Fused rows have no squeeze-and-excitation, as in V2's tables; those of `ABLATION_KERNELS` have its kernel. Raises
    ValueError for rows that don't exist or aren't MBConv.
    """
    architecture = ARCHITECTURES[name]
    for row in stages:
        if not 1 <= row <= len(architecture.blocks):
            raise ValueError(f"fused row {row}: {name} has rows 1 to {len(architecture.blocks)}")
        if architecture.blocks[row - 1].operator != "MBConv":
            raise ValueError(f"fused row {row}: row {row} of {name} is Fused-MBConv already")
    blocks = tuple(
        replace(block, operator="Fused-MBConv", kernel=ABLATION_KERNELS.get(row, block.kernel), se=0.0)
        if row in stages
        else block
        for row, block in enumerate(architecture.blocks, start=1)
    )
    label = ",".join(map(str, sorted(stages)))
    return replace(architecture, name=f"{name}, fused {label}", blocks=blocks)

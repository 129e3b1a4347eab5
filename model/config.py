"""`ModelConfig`: the model, and its settings that stay the same from stage to stage."""

from dataclasses import dataclass, replace
from typing import Literal

from model.tables import ARCHITECTURES, Architecture, Block, fused_variant

TIMM_PREFIX = "timm/"
UNETS = {f"unet_{name}": name for name in ARCHITECTURES}
"""EfficientUNet's names, and the rows that each has as its encoder."""
SWIN_MINI = {f"swin_mini_{width}": width for width in (16, 24, 32, 48, 64)}
"""Not of a paper: Swins for small images on a CPU, by name, and the channels of their first level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model, and what of it does not change from stage to stage."""

    name: str = "efficientnet_v2_s"
    """Model by name: efficientnet_b0..b7, efficientnet_v2_{s,m,l,xl,b0,b1,b2,b3,tiny}, efficientnet_lite0,
    swin_{t,s,b}, swin_v2_{t,s,b}, swin_mini_{16,24,32,48,64}, resnet{50,152}, timm/NAME when timm is installed; for
    segmentation unet_ and the name of an EfficientNet. `python -m jobs.models` lists them with their costs."""
    in_channels: int = 3
    """Channels of the input images."""
    fused_rows: tuple[int, ...] = ()
    """Rows of the architecture table, counted from 1, whose MBConv becomes Fused-MBConv as in the paper's ablation."""
    rows: tuple[Block, ...] = ()
    """Rows that replace those of the EfficientNet `name`; its stem and head stay. Empty: its own rows. `--model-rows
    FILE` reads them from a file that `jobs.search` wrote."""
    same_padding: bool = False
    """Pad as TensorFlow does: unevenly where stride 2 meets an even size. Needed for weights converted from
    TensorFlow."""
    stochastic_depth: float = 0.2
    """Drop probability of the last residual block, growing linearly from 0 at the first; 1 - the paper's survival
    probability. ResNets have none and ignore it."""
    norm_momentum: float | None = None
    """Batch-norm momentum as PyTorch has it (1 - TensorFlow's decay). None: 0.01 for EfficientNets (the paper's 0.99;
    the released V2 code's 0.9 is 0.1 here), the library's own for all others."""
    norm_eps: float | None = None
    """Batch-norm epsilon. None: 1e-3 for EfficientNets (the authors'), the library's own for all others. torchvision's
    weights of B0-B4 were trained with 1e-5."""
    init: Literal["google", "torchvision"] = "google"
    """Random weights of an EfficientNet's convolutions: google's have a variance of 2 / (k * k * outputs / groups), as
    the authors' code has it; torchvision's don't divide by the groups, so a depthwise convolution of C channels starts
    sqrt(C) times smaller."""
    init_from: str | None = None
    """Weights to start from: path or s3:// URI of a safetensors or PyTorch file, or a run's checkpoint; or the model's
    ImageNet weights by name: lite0 (those of efficientnet_lite0, in a package), torchvision, timm. If the number of
    classes differs, the classifier starts from random weights."""
    frozen: bool = False
    """Train only the part that belongs to the task (classifier, a U-Net's decoder); the rest keeps its weights and
    statistics."""

    def __post_init__(self) -> None:
        if self.in_channels < 1:
            raise ValueError(f"in_channels={self.in_channels}: must be at least 1")
        if (self.fused_rows or self.rows or self.same_padding) and self.name not in ARCHITECTURES | UNETS:
            raise ValueError(f"name={self.name}: fused_rows, rows and same_padding are for the EfficientNets only")
        if self.fused_rows and self.rows:
            raise ValueError(f"fused_rows={self.fused_rows}: they are for a table's own rows; leave them out with rows")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth={self.stochastic_depth}: must be in [0, 1)")
        if self.norm_momentum is not None and not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum={self.norm_momentum}: must be in (0, 1], or None for the model's own")
        if self.norm_eps is not None and self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps}: must be above 0, or None for the model's own")


def architecture_of(config: ModelConfig) -> Architecture | None:
    """The rows of the EfficientNet, or of the U-Net's encoder, that `config` names; None for other models."""
    name = UNETS.get(config.name, config.name)
    if name not in ARCHITECTURES:
        return None
    if config.rows:
        return replace(ARCHITECTURES[name], name=f"{name}, own rows", blocks=config.rows)
    return fused_variant(name, config.fused_rows) if config.fused_rows else ARCHITECTURES[name]


def swin_stride(name: str) -> int:
    """Input pixels, along a side, of one position of the last feature map of a Swin or ResNet."""
    return 16 if name in SWIN_MINI else 32

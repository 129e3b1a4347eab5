"""The two parts of a network that depend on the task: the first convolution, and the classifier with its dropout."""

from torch import Tensor, nn
from torch.nn import functional as F


class TaskHead:
    """The layer that gives the logits, with the dropout before it: it has a weight [K, C, ...] and a rate."""

    dropout: float = 0.0
    """Dropout rate of the layer's input in training."""
    weight: Tensor


class HeadLinear(TaskHead, nn.Linear):
    """`nn.Linear` whose input is dropped at rate `dropout` in training. Weights are named as in `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Features [B, C] -> logits [B, K]."""
        return super().forward(F.dropout(input, self.dropout, self.training) if self.dropout else input)

    def extra_repr(self) -> str:
        """The linear layer's own, and the rate."""
        return f"{super().extra_repr()}, dropout={self.dropout}"


class HeadConv2d(TaskHead, nn.Conv2d):
    """`nn.Conv2d` whose input channels are dropped, whole, at rate `dropout` in training.

    Whole, since a pixel's neighbours would give a dropped value away.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features [B, C, H, W] -> logits [B, K, H, W]."""
        return super().forward(F.dropout2d(input, self.dropout, self.training) if self.dropout else input)

    def extra_repr(self) -> str:
        """The convolution's own, and the rate."""
        return f"{super().extra_repr()}, dropout={self.dropout}"


def replace_linear(model: nn.Module, name: str, *, dropout: float) -> None:
    """Make the linear layer `name` of `model` a `HeadLinear` with the same parameters."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new = HeadLinear(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    new.weight, new.bias = old.weight, old.bias
    new.dropout = dropout
    model.set_submodule(name, new)


def replace_stem(model: nn.Module, name: str, in_channels: int) -> None:
    """Replace the first convolution, `name`, by one that takes `in_channels`, freshly initialized."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    model.set_submodule(name, new)

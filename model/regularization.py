"""Sets on the live model what follows the training stage (dropout, stochastic depth), and what is frozen."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import StochasticDepth

from model.head import TaskHead


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the rate of the dropout before the task's head, on the live model. Other dropouts stay as they are."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate}: must be in [0, 1)")
    for module in model.modules():
        if isinstance(module, TaskHead):
            module.dropout = rate


def set_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Set the last residual block's drop probability to `rate` and all others in proportion, on the live model.

    A model without stochastic depth, and a timm model built with none, has nothing to set.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"stochastic_depth={rate}: must be in [0, 1)")
    drops = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    # EfficientNets count depth as index / count, Swin as index / (count - 1); both authors' rules.
    last = max(1, len(drops) - isinstance(model, SwinTransformer))
    for index, module in enumerate(drops):
        module.p = rate * index / last
    _scale_timm(model, rate)


def _scale_timm(model: nn.Module, rate: float) -> None:
    drops: list[Any] = [module for module in model.modules() if type(module).__name__ == "DropPath"]
    # The proportions are the model's own; they are kept separately, since a rate of 0 would lose them.
    for module in drops:
        if not hasattr(module, "full_drop_prob"):
            module.full_drop_prob = module.drop_prob
    largest = max((module.full_drop_prob for module in drops), default=0.0)
    for module in drops:
        module.drop_prob = rate * module.full_drop_prob / largest if largest else 0.0


class FrozenStatistics:
    """Mixed into a batch norm: its stored statistics are used in training too, and stay as they are."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)  # type: ignore[misc]


@cache
def _frozen(kind: Any) -> Any:
    # A class for each kind: timm's batch norms have the activation inside.
    return type(f"Frozen{kind.__name__}", (FrozenStatistics, kind), {})


def freeze(model: nn.Module) -> None:
    """Leave only the task's own parts trainable: the head, and a U-Net's decoder."""
    model.requires_grad_(False)
    trainable = set(_task_parts(model))
    for part in trainable:
        part.requires_grad_(True)
    kept = {module for part in trainable for module in part.modules()}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in kept:
            kind: Any = type(module)
            module.__class__ = _frozen(kind)
            module.eval()


def head_and_norms(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of the task's last layer and of all normalization layers."""
    kinds = (TaskHead, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return {weight for module in model.modules() if isinstance(module, kinds) for weight in module.parameters()}


def _task_parts(model: nn.Module) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, TaskHead) or name == "decoder":
            yield module

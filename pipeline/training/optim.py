"""Optimizers."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from model.depth import layer_of_parameters
from model.head import TaskHead
from pipeline.training_config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The optimizer of the model's trainable parameters, in groups with and without weight decay, and by depth.

    The rate in the groups is the peak; call `set_rate(optimizer, learning_rate(...))` before each step.

    Raises:
        ValueError: everything is frozen, or timm, which has the optimizer, is not installed.
    """
    groups = parameter_groups(
        model, config.weight_decay, layer_decay=config.layer_decay, separate_head=config.optimizer == "muon"
    )
    if config.optimizer == "rmsprop":
        return RMSpropTF(groups, lr=config.lr, momentum=config.momentum, decay=config.decay, eps=config.eps)
    # One kernel for all of a step on a GPU; on a CPU, which has one too, runs keep the bits that they had.
    kernel = {"fused": True} if next(model.parameters()).is_cuda else {"foreach": True}
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, **kernel)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), **kernel)
    return _timm_optimizer(config, groups)


def _timm_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    try:
        from timm.optim import Lamb, Lion, Muon
    except ImportError:
        raise ValueError(
            f"optimizer.optimizer is {config.optimizer}, which timm has: `uv pip install -U timm` adds it"
        ) from None
    optimizer: Optimizer
    if config.optimizer == "lamb":  # clipping is `clip_norm`'s
        optimizer = Lamb(groups, lr=config.lr, betas=(config.momentum, 0.999), max_grad_norm=None)
    elif config.optimizer == "lion":
        optimizer = Lion(groups, lr=config.lr, betas=(config.momentum, 0.99))
    else:
        optimizer = Muon(groups, lr=config.lr, momentum=config.momentum, nesterov=True, betas=(0.9, 0.999))
    return optimizer


_KERNELS = ("foreach", "fused", "capturable")
"""Entries of a group on how it is computed, not what."""


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over an optimizer's state, but for how it was computed where it comes from: a checkpoint may change devices.

    Raises:
        ValueError, KeyError: it is another model's or optimizer's.
    """
    groups = [
        group | {name: own[name] for name in _KERNELS if name in own}
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the next step; groups of lower layers may have a part of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)


# Learned tables and scales of attention, which are no weights of a product (Swin, ViT).
_NO_DECAY_NAMES = ("position_bias", "logit_scale", "pos_embed", "cls_token")


def parameter_groups(
    model: nn.Module, weight_decay: float, *, layer_decay: float = 1.0, separate_head: bool = False
) -> list[dict[str, Any]]:
    """Trainable parameters as groups, from the stem to the head; of each layer those with weight decay come first.

    Without decay are biases, norms (one dimension all) and position tables.

    Args:
        model: the model.
        weight_decay: of the groups that have it.
        layer_decay: factor of a group's `lr_share` from a layer to the one before it; 1: all layers are one group.
        separate_head: mark the task's head and what has no weight decay as no products for Muon (`use_fallback`).

    Raises:
        ValueError: everything is frozen.
    """
    layers = {} if layer_decay == 1 else layer_of_parameters(model)
    last = max(layers.values(), default=0)
    heads = {id(part.weight) for part in model.modules() if isinstance(part, TaskHead)} if separate_head else set()
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_free = parameter.ndim <= 1 or any(part in name for part in _NO_DECAY_NAMES)
        layer, fallback = layers.get(name, last), separate_head and (is_free or id(parameter) in heads)
        group = groups.setdefault(
            (layer, is_free, fallback), {"params": [], "weight_decay": 0.0 if is_free else weight_decay}
        )
        group["params"].append(parameter)
        if layers:
            group["lr_share"] = layer_decay ** (last - layer)
        if separate_head:
            group["use_fallback"] = fallback
    if not groups:
        raise ValueError("the model has no trainable parameter: everything is frozen")
    return [groups[key] for key in sorted(groups)]


class RMSpropTF(Optimizer):
    """RMSProp as TensorFlow's `RMSPropOptimizer` computes it, which the EfficientNets were trained with.

    Different from PyTorch's: the mean square starts at 1 and not at 0, eps is inside the root, and the rate is inside
    the momentum, so that a lower rate acts on new gradients only:

        g = gradient + weight_decay * w
        mean_square = decay * mean_square + (1 - decay) * g^2
        buffer = momentum * buffer + lr * g / sqrt(mean_square + eps)
        w = w - buffer
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.256,
        momentum: float = 0.9,
        decay: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "decay": decay, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        states = [self._state_of(parameter) for parameter in parameters]
        squares = [state["mean_square"] for state in states]
        buffers = [state["buffer"] for state in states]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        torch._foreach_mul_(squares, group["decay"])
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcdiv_(buffers, gradients, roots, value=group["lr"])
        torch._foreach_sub_(parameters, buffers)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["mean_square"] = torch.ones_like(parameter)
            state["buffer"] = torch.zeros_like(parameter)
        return state

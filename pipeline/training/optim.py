"""Optimizers, and the moving average of the weights."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from pipeline.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The optimizer of the model's trainable parameters, in two groups: with and without weight decay.

    The rate in the groups is the peak; set `group["lr"]` to `learning_rate(...)` before each step.
    """
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "rmsprop":
        return RMSpropTF(groups, lr=config.lr, momentum=config.momentum, decay=config.decay, eps=config.eps)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, foreach=True)
    return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), foreach=True)


# Learned tables and scales of attention, which are no weights of a product (Swin, ViT).
_NO_DECAY_NAMES = ("position_bias", "logit_scale", "pos_embed", "cls_token")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters as [with decay, without]; without: biases, norms (one dimension all) and position tables."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_free = parameter.ndim <= 1 or any(part in name for part in _NO_DECAY_NAMES)
        (free if is_free else decayed).append(parameter)
    if not decayed and not free:
        raise ValueError("the model has no trainable parameter: everything is frozen")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


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


def build_ema(config: OptimizerConfig, model: nn.Module) -> AveragedModel | None:
    """The moving average of the model's weights and batch-norm statistics, or None when `ema_decay` is 0.

    Call `update_parameters(model)` after each step; the first call copies the model.
    """
    if not config.ema_decay:
        return None
    return AveragedModel(model, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)


def ema_update(decay: float) -> Callable[[Any, Any, Any], None]:
    """TensorFlow's moving average for `AveragedModel`: after n updates the decay is min(decay, (1 + n) / (10 + n))."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], num_averaged: Tensor) -> None:
        if not averages[0].is_floating_point():  # counters, such as batch norm's
            torch._foreach_copy_(averages, currents)
        elif num_averaged.device.type == "cpu":
            torch._foreach_lerp_(averages, currents, 1 - _ramped(decay, int(num_averaged)))
        else:  # reading the count would wait for the device
            weight = 1 - torch.clamp((1 + num_averaged) / (10 + num_averaged), max=decay)
            steps = torch._foreach_sub(currents, averages)
            torch._foreach_mul_(steps, weight)
            torch._foreach_add_(averages, steps)

    return update


def _ramped(decay: float, updates: int) -> float:
    return min(decay, (1 + updates) / (10 + updates))

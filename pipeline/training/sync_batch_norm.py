"""BatchNorm over the batches of several ranks, as the authors of EfficientNet train it on small per-device batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.training.batch_norm import running_norms
from pipeline.training_config import TrainerConfig


class _Sum(torch.autograd.Function):
    """The sum over a group's ranks. The gradient of each part is the sum of all ranks' gradients of the whole."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over a process group on a CPU: what `nn.SyncBatchNorm` is on a GPU, in plain operations.

    All ranks must have equally many samples.
    """

    process_group: dist.ProcessGroup

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape, normalized over the group's samples in training."""
        if not self.training:
            return super().forward(input)
        x, ranks = input.float(), dist.get_world_size(self.process_group)
        mean = self._sum(x.mean((0, 2, 3))) / ranks
        centred = x - mean[None, :, None, None]
        var = self._sum(centred.square().mean((0, 2, 3))) / ranks
        self._track(mean.detach(), var.detach(), count=ranks * input.numel() // input.shape[1])
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale[None, :, None, None] + self.bias[None, :, None, None]).to(input.dtype)

    def _sum(self, part: Tensor) -> Tensor:
        whole: Tensor = _Sum.apply(part, self.process_group)
        return whole

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(var * count / max(1, count - 1), factor)


def synchronize(model: nn.Module, config: TrainerConfig, device: torch.device) -> None:
    """Have a model's batch norms normalize over the groups of ranks that `sync_batchnorm` asks for.

    Raises:
        ValueError: the workers are no whole number of groups, or the model has other batch norms than PyTorch's 2D.
    """
    ranks, world_size = config.sync_batchnorm, dist.get_world_size() if dist.is_initialized() else 1
    config.check_workers(world_size)
    size = world_size if ranks == "all" else ranks
    norms = running_norms(model) if size else []
    for norm in norms:
        if type(norm) is not nn.BatchNorm2d:
            raise ValueError(
                f"trainer.sync_batchnorm is {ranks}: it can't synchronize this model's {type(norm).__name__}, only "
                "BatchNorm2d; set it to 0"
            )
    if size < 2 or not norms:
        return
    group = _own_group(size)
    for norm in norms:  # the module stays, so the optimizer's and the average's tensors do
        changed: Any = norm
        changed.__class__ = nn.SyncBatchNorm if device.type == "cuda" else GroupBatchNorm2d
        changed.process_group = group


@contextmanager
def unsynchronized(model: nn.Module) -> Iterator[None]:
    """Have each rank normalize by its own batch meanwhile: for passes that not all ranks make."""
    changed: list[Any] = [one for one in model.modules() if isinstance(one, nn.SyncBatchNorm | GroupBatchNorm2d)]
    kinds = [type(norm) for norm in changed]
    try:
        for norm in changed:
            norm.__class__ = nn.BatchNorm2d
        yield
    finally:
        for norm, kind in zip(changed, kinds, strict=True):
            norm.__class__ = kind


def _own_group(size: int) -> dist.ProcessGroup:
    """Return this rank's group of `size` neighbours. All ranks make all groups, as PyTorch wants it."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world_size, size)]
    own = groups[rank // size]
    assert isinstance(own, dist.ProcessGroup)
    return own

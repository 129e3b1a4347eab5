"""BatchNorm's running statistics: over ranks, over micro-batches, and estimated again from training samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

# The base of all batch norms, timm's and the synchronized ones too; PyTorch has no public name for it.
from torch.nn.modules.batchnorm import _BatchNorm

from model.regularization import FrozenStatistics
from pipeline.training.distributed import gathered


def running_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms whose running statistics move in training."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and not isinstance(module, FrozenStatistics)
    ]


@torch.no_grad()
def average_statistics(norms: Sequence[_BatchNorm]) -> None:
    """Replace each rank's running statistics by their mean over the ranks.

    A rank's statistics are sums of what it has seen, weighted by age; so the mean at any later step is the same as
    the mean after every step, but for its rounding. Counts of batches are equal on all ranks.
    """
    if not norms or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    _average([tensor for norm in norms for tensor in _statistics(norm)])


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _count(norm: _BatchNorm) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _average(tensors: Sequence[Tensor], weight: float = 1.0) -> None:
    """Replace tensors by their means over the ranks, each rank's with its `weight`. Not all weights may be 0."""
    parts = [tensor.flatten().float() * weight for tensor in tensors]
    flat = torch.cat([*parts, torch.tensor([weight], device=parts[0].device)])
    dist.all_reduce(flat)
    flat /= flat[-1].clone()
    for tensor, mean in zip(tensors, flat[:-1].split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@contextmanager
def momentum_share(norms: Sequence[_BatchNorm], share: float) -> Iterator[None]:
    """Have a pass over a `share` of a step's samples move the running statistics by as much of a whole step's way.

    Passes of one step, whose shares add up to 1, keep (1 - m) of the old statistics together, as one pass does: how
    many they are follows from the device's memory, which the model should not depend on.
    """
    if share == 1:
        yield
        return
    momenta = [norm.momentum for norm in norms]
    try:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = None if momentum is None else 1 - (1 - momentum) ** share
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics by those of `batches`, the mean of all ranks'; return how many samples they held.

    0 means that there was nothing to estimate from: the statistics are lost then.

    Only the norms are in training mode (`torch.optim.swa_utils.update_bn` has dropout and stochastic depth on too,
    which an evaluation has not). Frozen statistics stay.

    Args:
        model: in any mode; in evaluation mode afterwards. Its norms must not be synchronized.
        batches: this rank's, of nearly equal lengths, as the model takes them: float [B, 3, H, W].
    """
    norms = running_norms(model)
    model.eval()
    momenta, counts = [norm.momentum for norm in norms], [_count(norm).clone() for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    samples = 0
    for images in batches:
        model(images)
        samples += len(images)
    for norm, momentum, count in zip(norms, momenta, counts, strict=True):
        norm.momentum = momentum
        _count(norm).copy_(count)
        norm.eval()
    total = sum(gathered(samples))
    if norms and total and dist.is_initialized() and dist.get_world_size() > 1:
        _average([tensor for norm in norms for tensor in _statistics(norm)], float(samples))
    return total

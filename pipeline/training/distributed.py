"""The model over all ranks, and what they agree on.

A resumed run adds up gradients in exactly the order of one that was never killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Agreed = TypeVar("Agreed")
Value = TypeVar("Value")


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; 0 and 1 without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def data_parallel(model: nn.Module, device: torch.device, *, images: tuple[int, int, int]) -> DistributedDataParallel:
    """Wrap a model for training over all ranks; its gradient buckets are settled from the first step on.

    DDP packs gradients into buckets in the order of the parameters, and repacks them after its first backward pass,
    in the order in which the gradients came. With three and more ranks an all-reduce adds up a number's parts in an
    order that depends on its place in its bucket. So the first step after every start would round in another way than
    the same step in the middle of a run, and a resumed run would end with other weights. One backward pass without an
    effect comes first therefore; then every step uses the final buckets.

    Args:
        model: the model, on `device`.
        device: where it trains.
        images: channels, height and width of images that it takes; the order of gradients doesn't depend on the sides.
    """
    net = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        forward_sync_buffers=False,  # each rank's statistics count: `average_statistics`
    )
    _settle_buckets(net, torch.zeros(2, *images, device=device))
    return net


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers back afterwards: those of BatchNorm follow every pass."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)


def agreed(values: tuple[Agreed, ...], device: torch.device) -> tuple[Agreed, ...]:
    """Return rank 0's values on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    count = torch.tensor(len(values), device=device)
    dist.broadcast(count, src=0)
    if not int(count):
        return ()
    box = [values]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """Return every rank's value, in the order of the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _settle_buckets(net: DistributedDataParallel, images: Tensor) -> None:
    """Run one backward pass on `images` [B, C, H, W] and leave no trace of it in the model."""
    was_training = net.training
    net.train()
    with buffers_kept(net):
        net(images.to(memory_format=torch.channels_last)).float().sum().backward()
    net.zero_grad(set_to_none=True)
    net.train(was_training)

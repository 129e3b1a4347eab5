"""Copies of a run's tensors in host memory, which a checkpoint is written from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64


def to_host(value: Any) -> Any:
    """Copy every tensor in nested dicts and lists to host memory of its own.

    Those of a GPU go into one piece of page-locked memory, so that the host waits once for all of them: to other memory
    it would wait for each of thousands. They are copied where they were computed, before the next step changes them.
    """
    on_gpu = [one for one in _tensors(value) if one.is_cuda]
    copies = dict(zip(map(id, on_gpu), _from_gpu(on_gpu), strict=True))
    return _each(value, lambda one: copies[id(one)] if one.is_cuda else one.detach().to("cpu", copy=True))


def _from_gpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    if not tensors:
        return []
    copies = laid_out(tensors, pinned=True)
    for copy, one in zip(copies, tensors, strict=True):
        copy.copy_(one.detach(), non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


def laid_out(tensors: Sequence[Tensor], *, pinned: bool) -> list[Tensor]:
    """Return empty tensors on the host, of the same shapes, types and strides, in one piece of memory."""
    starts = [0]
    for one in tensors:
        starts.append(starts[-1] + -(-one.nbytes // _ALIGNMENT) * _ALIGNMENT)
    memory = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
    return [_like(one, memory[start : start + one.nbytes]) for one, start in zip(tensors, starts, strict=False)]


def _like(tensor: Tensor, memory: Tensor) -> Tensor:
    flat = memory.view(tensor.dtype)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    # One with gaps, or whose elements share memory, is copied as if it had neither.
    return flat.as_strided(tensor.shape, tensor.stride()) if reach == tensor.numel() else flat.view(tensor.shape)


def _tensors(value: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    _each(value, lambda one: found.append(one) or one)  # type: ignore[func-returns-value]
    yield from found


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each(item, change) for item in value)
    return value

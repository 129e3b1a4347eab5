"""Activation checkpointing: a block's activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BLOCK_NAMES = ("Residual", "Bottleneck", "Block")
"""What blocks are called in torchvision, timm and here."""


class CheckpointedForward(nn.Module):
    """Mixed into a block: in training its activations are not kept; dropout and stochastic depth repeat themselves."""

    def forward(self, *inputs: Any) -> Any:
        """As the block's own."""
        run = super().forward
        if not (self.training and torch.is_grad_enabled()):
            return run(*inputs)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=partial(_contexts, self))


def checkpoint_blocks(model: nn.Module) -> int:
    """Have a model's blocks compute their activations twice instead of keeping them; return how many blocks it has.

    Raises:
        ValueError: it has no blocks that are known as such.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise ValueError(
            f"trainer.checkpoint_activations is True, but no blocks are known in {type(model).__name__}: set it to "
            "False, or trainer.micro_batch_size to less"
        )
    for block in blocks:
        kind: Any = type(block)
        block.__class__ = _checkpointed(kind)
    return len(blocks)


def _blocks(module: nn.Module, name: str = "") -> Iterator[nn.Module]:
    """Yield the outermost blocks, and the levels of a U-Net's decoder, whose maps are the largest."""
    for child_name, child in module.named_children():
        if name == "decoder" or any(part in type(child).__name__ for part in _BLOCK_NAMES):
            yield child
        else:
            yield from _blocks(child, child_name)


@cache
def _checkpointed(kind: Any) -> Any:
    return type(f"Checkpointed{kind.__name__}", (CheckpointedForward, kind), {})


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_aside(block)


@contextmanager
def _buffers_aside(block: nn.Module) -> Iterator[None]:
    """Let copies of a block's buffers follow what is computed meanwhile: batch norms have seen this batch already."""
    own: list[tuple[nn.Module, str, Tensor]] = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in own:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer

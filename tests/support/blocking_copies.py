"""Copies between host and device for which the host would wait."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class BlockingCopies(TorchDispatchMode):
    """Keeps the copies between host and device that the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        packet = func.overloadpacket
        if packet in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[0] if packet is torch.ops.aten._to_copy else args[1]
            blocking = not (options.get("non_blocking") or (len(args) > 2 and args[2] is True))
            if source.device != result.device and blocking:
                self.found.append(f"{func}: {tuple(source.shape)} from {source.device} to {result.device}")
        return result

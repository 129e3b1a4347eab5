"""Batches on their way to the device, beside what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from datasets.loading.batch import Batch

_SLOTS = 2
"""Batches on the device: the one that is trained on and the next."""


class Transfer:
    """Copies batches to a GPU on a stream of its own, while the steps before are computed.

    The memory of two batches is used in turn: a host that is many steps ahead of the device doesn't fill it with
    batches that wait. On a CPU a batch is handed over as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots = [Slot(device) for _ in range(_SLOTS)]

    @contextmanager
    def on_device(self, batch: Batch) -> Iterator[Batch]:
        """Give the batch on the device, for the work that is started inside."""
        if self._stream is None:
            yield batch
            return
        slot, computing = self._slots[0], torch.cuda.current_stream(self._device)
        self._slots.reverse()
        with torch.cuda.stream(self._stream):
            if slot.used is not None:  # the device waits, not the host
                self._stream.wait_event(slot.used)
            copy = slot.hold(batch)
        computing.wait_stream(self._stream)
        yield copy
        slot.used = computing.record_event()


class Slot:
    """Memory for one batch on a device, taken again for the next one of the same shapes."""

    def __init__(self, device: torch.device) -> None:
        self.used: torch.cuda.Event | None = None
        """The end of all work on the batch that it holds."""
        self._device = device
        self._held: list[Tensor] = []

    def hold(self, batch: Batch) -> Batch:
        """Copy a batch into this memory, on the current stream; return it there."""
        before, self._held = iter(self._held), []

        def copied(one: Tensor) -> Tensor:
            there = next(before, None)
            if there is None or (there.shape, there.dtype, there.stride()) != (one.shape, one.dtype, one.stride()):
                there = torch.empty_like(one, device=self._device)
            self._held.append(there)
            return there.copy_(one, non_blocking=True)

        return batch.each(copied)

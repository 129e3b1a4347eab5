"""The moving average of a model's weights and batch-norm statistics."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.checkpoint.format import averaged_tensors


class MovingAverage:
    """TensorFlow's moving average: after n updates its decay is min(decay, (1 + n) / (10 + n)).

    The count of updates is a number of the host, so that no update waits for the device, as it does in PyTorch's
    `AveragedModel`, whose count is a tensor (pytorch#157705). The names in its state are that class's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = deepcopy(model), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's tensors into the average; the first call copies them."""
        averages, counters = _parted(self.module)
        currents, current_counters = _parted(model)
        if self.updates:
            weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(averages, currents, weight)
        else:
            torch._foreach_copy_(averages, currents)
        if counters:
            torch._foreach_copy_(counters, current_counters)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged tensors and the count of updates."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.updates), **tensors}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError, RuntimeError: it is of another model.
        """
        self.module.load_state_dict(averaged_tensors(state))
        self.updates = int(state["n_averaged"])


def horizon_kept(decay: float, batch: int, reference: int) -> float:
    """Return the decay of a step of `batch` samples with which as much of the past is left, sample by sample, as with
    `decay` and steps of `reference` samples."""
    return float(decay ** (batch / reference))


def _parted(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return a model's tensors that have an average, and those that count, such as batch norm's."""
    tensors = [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
    return [one for one in tensors if one.is_floating_point()], [one for one in tensors if not one.is_floating_point()]

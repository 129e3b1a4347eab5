"""What timm's train.py imports by its flag `--device-modules`: this project's model under a name, and a clock.

The script itself stays as it is. It runs in a folder in which `pipeline.compare.peer` has put the model's config, and
at its end the clock's file is written there.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import logging
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import nn

from model.config import ModelConfig
from model.factory import build_model
from model.regularization import set_dropout, set_stochastic_depth
from pipeline.checkpoint.recorded_config import config_from
from pipeline.compare.peer_flags import EPOCHS, MODEL

_PARENT_ENDED = 1  # Linux's PR_SET_PDEATHSIG

seen = {"samples": 0, "pixels": 0}
"""What the model was trained on so far."""


@register_model
def crescendo(*, num_classes: int, drop_rate: float = 0.0, drop_path_rate: float | None = None, **_: Any) -> nn.Module:
    """Build the run's model: the script has seeded PyTorch right before, as a worker does."""
    config = config_from(ModelConfig, json.loads(Path(MODEL).read_text()), MODEL)
    model = build_model(config, num_classes=num_classes)
    set_dropout(model, drop_rate)
    set_stochastic_depth(model, config.stochastic_depth if drop_path_rate is None else drop_path_rate)
    model.register_forward_pre_hook(_count)
    return model


def _count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if module.training:
        batch, _, height, width = inputs[0].shape
        seen["samples"] += batch
        seen["pixels"] += batch * height * width


class Clock(logging.Handler):
    """Notes when each epoch's training begins and ends, by the script's messages: the first and the last step have one.

    What comes between (evaluations, checkpoints) ends with a message too, so the last one before an epoch's first step
    is where its training begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, Any]] = []
        self.last = self._now()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        now = self._now()
        if match := re.match(r"Train: (\d+) ", record.getMessage()):
            if len(self.epochs) == int(match[1]):
                self.epochs.append({"start": self.last})
            self.epochs[-1] |= {"end": now, **seen}
        self.last = now

    def write(self) -> None:
        """Write what was noted."""
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else kilobytes * 1024
        found = {"epochs": self.epochs, "finish": self.last, "peak_bytes": peak, "timm": timm.__version__}
        Path(EPOCHS).write_text(json.dumps(found))

    @staticmethod
    def _now() -> dict[str, float]:
        return {"wall_s": time.perf_counter(), "cpu_s": time.process_time()}


def _start() -> None:
    if sys.platform == "linux":  # a comparison that is killed must not leave a training behind
        ctypes.CDLL(None).prctl(_PARENT_ENDED, signal.SIGKILL)
    clock = Clock()
    logging.getLogger().addHandler(clock)
    atexit.register(clock.write)


if Path(MODEL).exists():
    _start()

"""Snapshots of a model that was never trained."""

from __future__ import annotations

import torch

from pipeline.checkpoint.format import Snapshot
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState


def snapshot(cursor: int) -> Snapshot:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "square": weight * 2}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    return Snapshot(
        state=TrainState(cursor=cursor, step=cursor // 24, stage_starts=[0, 24], stage_results=[{"train_s": 1.5}, {}]),
        model={"weight": weight, "count": torch.tensor(7)},
        ema={"weight": weight + 1},
        optimizer=optimizer,
        metadata=RunMetadata(config={"name": "x"}),
    )

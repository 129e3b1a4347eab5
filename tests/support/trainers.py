"""Trainers without a cluster, and what two of them must agree in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datasets.checks import check_data
from model.factory import build_model
from pipeline.checkpoint.format import Snapshot
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.config import TrainConfig
from pipeline.training.batch_norm import running_norms
from pipeline.training.hooks import TrainHooks
from pipeline.training.reestimation import reestimate_from_data
from pipeline.training.task import build_task
from pipeline.training.trainer import Trainer


def make_trainer(config: TrainConfig, hooks: TrainHooks, device: torch.device | None = None) -> Trainer:
    torch.manual_seed(config.seed)
    train, val = check_data(config.data, batch_sizes=[], worker_counts=[])
    task = build_task(config.task, train.classes)
    return Trainer(
        config,
        model=build_model(config.model, num_classes=task.num_outputs),
        task=task,
        train=train,
        val=val,
        hooks=hooks,
        metadata=RunMetadata(),
        device=device,
    )


def assert_same_weights(one: Snapshot, other: Snapshot) -> None:
    for name, tensor in one.model.items():
        assert torch.equal(tensor, other.model[name]), name
    assert one.ema is not None
    assert other.ema is not None
    for name, tensor in one.ema.items():
        assert torch.equal(tensor, other.ema[name]), f"ema {name}"


def reestimated(config: TrainConfig, samples: int = 100, size: int = 48, *, earlier: int = 0) -> dict[str, Tensor]:
    """Return the statistics of a fresh model that are estimated from training samples; `earlier` seeds those before."""
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=4)
    torch.manual_seed(earlier)
    for norm in running_norms(model):
        nn.init.uniform_(norm.running_mean)
    options = {"samples": samples, "image_size": size, "seed": config.seed, "device": torch.device("cpu")}
    reestimate_from_data(model, config.data, config.trainer, **options)
    return {name: value for name, value in model.state_dict().items() if "running" in name}

"""Side by side, in turns: the trainer, a plain loop with our model, the same loop with timm's."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, cast

import torch
from torch import nn

from datasets.loading.batch import Batch
from jobs.benchmark.gpu.options import Options, unmixed, with_stages
from jobs.benchmark.gpu.peaks import peak_tflops
from jobs.benchmark.gpu.trainers import Interval, Rounds, clear, make_trainer, synchronize
from jobs.benchmark.model import TIMM_NAMES
from model.cost import multiply_adds
from model.factory import build_model
from model.regularization import set_dropout, set_stochastic_depth
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage
from pipeline.training.evaluation import autocast
from pipeline.training.moving_average import MovingAverage
from pipeline.training.optim import build_optimizer
from pipeline.training.task import Task
from pipeline.training.trainer import Trainer

OURS, PLAIN, TIMM, COMPILED = "this project", "plain loop", "plain loop, timm", "this project, compiled"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRow:
    """One contender in one stage."""

    image_size: int
    batch_size: int
    contender: str
    images_per_s: float
    """Median over the rounds."""
    step_ms: float
    """Median of a step."""
    host_ms: float
    """Median of the host's part of it; as long as the step, the host never runs ahead of the device."""
    relative: float
    """Median over the rounds of this project's images/s relative to the contender's: above 1, this project's is
    faster."""
    relative_low: float
    """First quartile of that ratio."""
    relative_high: float
    """Third quartile."""
    utilization: float | None
    """Operations that the model needs a second (three times those of the forward pass), as a share of the device's
    peak; None: the peak isn't known, or it is computed in another precision than bf16."""
    first_step_s: float
    """Seconds from the contender's start to its first step: for what is compiled the cold start, otherwise 0."""


class PlainLoop:
    """What one would write in PyTorch, with the task's loss and the run's optimizer and moving average."""

    def __init__(self, model: nn.Module, config: TrainConfig, task: Task, device: torch.device) -> None:
        self.config, self.task, self.device = config, task, device
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(config.optimizer, self.model)
        decay = config.optimizer.ema_decay
        self.average = MovingAverage(self.model, decay) if decay else None

    def run(self, batches: Sequence[Batch], steps: int) -> Interval:
        """Take so many steps, with one wait for the device at their end."""
        synchronize(self.device)
        began = time.perf_counter()
        for batch in islice(cycle(batches), steps):
            loss = self.step(batch)
        given = time.perf_counter()
        loss.item()
        return Interval(step_s=(time.perf_counter() - began) / steps, host_s=(given - began) / steps)

    def step(self, batch: Batch) -> torch.Tensor:
        """Take one step; returns the loss, on the device."""
        trainer = self.config.trainer
        images = batch.images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        images = images.sub_(trainer.pixel_mean).div_(trainer.pixel_std)
        with autocast(trainer, self.device):
            logits = self.model(images)
        loss = self.task.loss(logits, self.task.targets(batch, self.device))["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model)
        return loss.detach()


def measure_speed(config: TrainConfig, options: Options) -> list[SpeedRow]:
    """Measure every image size of the schedule; batches are in memory, so the loader has no part in it."""
    rows = []
    for stage in {stage.image_size: stage for stage in config.stages}.values():
        rows += side_by_side(with_stages(config, [unmixed(stage)], _planned(options)), options, (PLAIN, TIMM))
        clear()
    return rows


def side_by_side(config: TrainConfig, options: Options, others: Sequence[str], ours: str = OURS) -> list[SpeedRow]:
    """Measure a config's only stage: the trainer and the others, in each round once each, those in random order."""
    (stage,) = config.stages
    hooks = Rounds(options.rounds, options.steps)
    trainer = make_trainer(config, hooks, in_memory=True)
    loops = {name: loop for name in others if (loop := _loop(name, trainer, stage)) is not None}
    intervals: dict[str, list[Interval]] = {name: [] for name in loops}
    batches = list(islice(trainer.feed.loader(trainer.progress.schedule.spans[0]), options.steps))
    shuffle = random.Random(0)

    def others_turn() -> None:
        for name in shuffle.sample(list(loops), len(loops)):
            intervals[name].append(loops[name].run(batches, options.steps))

    hooks.between = others_turn
    began = time.perf_counter()
    trainer.run()
    measured = {ours: hooks.intervals} | {name: all_of[1:] for name, all_of in intervals.items()}
    first_step_s = hooks.started_s - began if config.trainer.compile else 0.0
    return [_row(name, measured, trainer, options, ours, first_step_s if name == ours else 0.0) for name in measured]


def _planned(options: Options) -> int:
    """Steps of a stage that is not to end before its last round."""
    return options.steps * (options.rounds + 2)


def _loop(name: str, trainer: Trainer, stage: TrainingStage) -> PlainLoop | None:
    """Return one of the plain loops; None: timm has no such model."""
    config, outputs = trainer.config, trainer.task.num_outputs
    torch.manual_seed(config.seed)
    depth = trainer.config.stochastic_depth_of(stage)
    if name == PLAIN:
        model = build_model(config.model, num_classes=outputs)
        set_dropout(model, stage.dropout)
        set_stochastic_depth(model, depth)
    else:
        theirs = timm_name(config.model.name)
        if theirs is None:
            return None
        import timm

        rates: dict[str, Any] = {} if theirs.startswith("resnet") else {"drop_path_rate": depth}
        if theirs.startswith("swin"):
            rates["img_size"] = config.data.shape(stage.image_size)  # timm makes its windows for one size
        model = cast(nn.Module, timm.create_model(theirs, num_classes=outputs, drop_rate=stage.dropout, **rates))
    return PlainLoop(model, config, trainer.task, trainer.device)


def timm_name(model: str) -> str | None:
    """Return timm's name of a model; None: it has none of the same architecture, or isn't installed."""
    try:
        import timm  # noqa: F401
    except ImportError:
        return None
    return model.removeprefix("timm/") if model.startswith("timm/") else TIMM_NAMES.get(model)


def _row(
    name: str,
    measured: Mapping[str, list[Interval]],
    trainer: Trainer,
    options: Options,
    ours: str,
    first_step_s: float,
) -> SpeedRow:
    (stage,) = trainer.config.stages
    pairs = zip(measured[name], measured[ours], strict=False)
    ratios = [theirs.step_s / own.step_s for theirs, own in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    step_s = statistics.median(one.step_s for one in measured[name])
    return SpeedRow(
        image_size=stage.image_size,
        batch_size=stage.batch_size,
        contender=name,
        images_per_s=stage.batch_size / step_s,
        step_ms=1000 * step_s,
        host_ms=1000 * statistics.median(one.host_s for one in measured[name]),
        relative=middle,
        relative_low=low,
        relative_high=high,
        utilization=_utilization(trainer, stage.batch_size / step_s, options),
        first_step_s=first_step_s,
    )


def _utilization(trainer: Trainer, images_per_s: float, options: Options) -> float | None:
    device, config = trainer.device, trainer.config
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = options.peak_tflops or peak_tflops(name)
    if not peak or not _in_bf16(trainer):
        return None
    shape = config.data.shape(config.stages[-1].image_size)
    # A step has three times the multiply-adds of the forward pass, each of two operations.
    return 6 * multiply_adds(config.model, shape, num_classes=1000) * images_per_s / (peak * 1e12)


def _in_bf16(trainer: Trainer) -> bool:
    with autocast(trainer.config.trainer, trainer.device):
        return torch.is_autocast_enabled(trainer.device.type)

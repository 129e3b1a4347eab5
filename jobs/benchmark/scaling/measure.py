"""The parts of a run's cost, measured on this machine: steps, their parts, the all-reduce, decoding.

Plain processes over gloo, one thread each, with the loader, model and optimizer of a run; they decode between steps.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from datasets.checks import check_data
from datasets.loading.batch import Batch
from jobs.benchmark.scaling.model import Cluster, Compute, Data, Link, predict
from model.config import ModelConfig
from model.factory import build_model
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage
from pipeline.training.inputs import mixed_inputs, stage_batches
from pipeline.training.learner import Learner
from pipeline.training.task import build_task

_SMALL = 1024
"""Numbers of the all-reduce that measures the latency alone"""
_REDUCTIONS = 20
_CPU = torch.device("cpu")

_Work = Callable[[int, int, TrainConfig, "Effort"], list[float]]
"""rank, workers, what is trained, how much is measured -> figures"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured."""

    workers: int
    steps: int
    rounds: int
    clock: Literal["wall", "cpu"] = "wall"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpeed:
    """One stage on this machine."""

    image_size: int
    one: float
    """Images a second of one worker."""
    all: float
    """Images a second of all workers."""
    predicted_one: float
    """One worker's by the model, from parts measured apart."""
    predicted_all: float
    """All workers' by the model."""
    compute_ms: float
    """Of one worker's step with the whole batch."""
    decode_ms: float
    """For the whole batch, on one core."""
    workers: int

    @property
    def efficiency(self) -> float:
        """Share of `workers` times one worker's speed."""
        return self.all / self.one / self.workers


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """What was measured of a recipe."""

    stages: list[StageSpeed]
    link: Link
    all_reduce_ms: float
    """Of the model's gradients over all workers."""
    gradient_bytes: int


def gradient_bytes(model: ModelConfig, num_classes: int) -> int:
    """Return the bytes of a model's gradients, float32."""
    return 4 * sum(weight.numel() for weight in build_model(model, num_classes=num_classes).parameters())


def measure_here(config: TrainConfig, effort: Effort) -> Here:
    """Time the recipe's stages on one worker and on all, and their parts; compare the model with what they give.

    Raises:
        DataError: the recipe's data can't be read, or the workers don't divide its lanes.
    """
    batch_sizes = [stage.batch_size for stage in config.stages]
    check_data(config.data, batch_sizes=batch_sizes, worker_counts=[effort.workers])
    config = replace(config, data=replace(config.data, loader_workers=0))
    one, many, parts, reduced = [], [], [], []
    for _ in range(effort.rounds):  # in turns: what else the machine does falls on all of them
        parts.append(_on(1, _time_parts, config, effort))
        one.append(_on(1, _time_steps, config, effort))
        many.append(_on(effort.workers, _time_steps, config, effort))
        reduced.append(_on(effort.workers, _time_all_reduce, config, effort))
    small_s, large_s, num_bytes = _least(reduced)
    link = _link(small_s, large_s, num_bytes, effort.workers)
    part_s, one_s, many_s = _least(parts), _least(one), _least(many)
    stages = [
        _speed(stage, part_s[3 * index : 3 * index + 3], one_s[index], many_s[index], link, num_bytes, effort.workers)
        for index, stage in enumerate(config.stages)
    ]
    return Here(stages=stages, link=link, all_reduce_ms=1000 * large_s, gradient_bytes=int(num_bytes))


def _least(rounds: list[list[float]]) -> list[float]:
    return [min(values) for values in zip(*rounds, strict=True)]


def _speed(
    stage: TrainingStage,
    part_s: list[float],
    one_s: float,
    many_s: float,
    link: Link,
    num_bytes: float,
    workers: int,
) -> StageSpeed:
    whole_s, share_s, decode_s = part_s
    compute = _line(stage, whole_s, share_s, workers)
    return StageSpeed(
        image_size=stage.image_size,
        one=stage.batch_size / one_s,
        all=stage.batch_size / many_s,
        predicted_one=_predicted(stage, compute, decode_s, link, num_bytes, 1),
        predicted_all=_predicted(stage, compute, decode_s, link, num_bytes, workers),
        compute_ms=1000 * whole_s,
        decode_ms=1000 * decode_s * stage.batch_size,
        workers=workers,
    )


def _line(stage: TrainingStage, whole_s: float, share_s: float, workers: int) -> Compute:
    """Return the line through two measured steps: of the whole batch, and of one worker's share of it."""
    share = stage.batch_size // workers
    per_image = max(0.0, whole_s - share_s) / (stage.batch_size - share) if workers > 1 else whole_s / stage.batch_size
    fixed = max(0.0, whole_s - stage.batch_size * per_image)
    return Compute(fixed_s=fixed, points=((stage.image_size, per_image),))


def _link(small_s: float, large_s: float, num_bytes: float, workers: int) -> Link:
    hops = 2 * (workers - 1)
    if not hops:
        return Link(bytes_per_s=float("inf"), latency_s=0.0)
    sending_s = max(large_s - small_s, 1e-9)
    return Link(bytes_per_s=hops / workers * num_bytes / sending_s, latency_s=small_s / hops)


def _predicted(
    stage: TrainingStage, compute: Compute, decode_s: float, link: Link, num_bytes: float, workers: int
) -> float:
    """Return the model's images a second of this machine's workers, one core each, from local shards."""
    data = Data(
        samples_per_epoch=stage.batch_size,
        blocks_per_shard=1,
        bytes_per_image={0: 0.0},
        decode={0: ((stage.image_size, decode_s),)},
    )
    node = Cluster(gpus_per_node=workers, cores_per_node=workers, in_node=link, between=link, decodes_beside=False)
    (cost,) = predict([stage], workers, compute=compute, gradient_bytes=num_bytes, data=data, cluster=node)
    return cost.images_per_s


# In the processes -----------------------------------------------------------------------------------------------------


def _on(workers: int, work: _Work, config: TrainConfig, effort: Effort) -> list[float]:
    """Run `work` in so many processes; return what rank 0 measured."""
    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-") as folder:
        mp.spawn(_process, args=(workers, folder, work, config, effort), nprocs=workers)
        return [float(value) for value in json.loads(Path(folder, "measured.json").read_text())]


def _process(rank: int, workers: int, folder: str, work: _Work, config: TrainConfig, effort: Effort) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    measured = work(rank, workers, config, effort)
    if rank == 0:
        Path(folder, "measured.json").write_text(json.dumps(measured))
    if workers > 1:
        dist.destroy_process_group()


def _time_steps(rank: int, workers: int, config: TrainConfig, effort: Effort) -> list[float]:
    """Return the seconds of a whole step in every stage."""
    learner = _learner(config)
    seconds = []
    for stage in config.stages:
        batches = _batches(config, stage, rank, workers, effort.steps + 1)
        steps = (_step(learner, *_inputs(learner, batch, stage, workers)) for batch in batches)
        seconds.append(_fastest_s(steps, effort))
    return seconds


def _time_parts(rank: int, workers: int, config: TrainConfig, effort: Effort) -> list[float]:
    """Return for every stage: seconds of a step with the batch, with a worker's share, and of decoding an image."""
    learner = _learner(config)
    seconds = []
    for stage in config.stages:
        made = _fastest_s(_batches(config, stage, 0, 1, effort.steps + 1), effort)
        images, targets = _inputs(learner, next(_batches(config, stage, 0, 1, 1)), stage, 1)
        for count in (stage.batch_size, stage.batch_size // effort.workers):
            steps = (_step(learner, images[:count], targets[:count]) for _ in range(effort.steps + 1))
            seconds.append(_fastest_s(steps, effort))
        seconds.append(made / stage.batch_size)
    return seconds


def _time_all_reduce(rank: int, workers: int, config: TrainConfig, effort: Effort) -> list[float]:
    """Return the seconds of adding up a few numbers and the model's gradients, and the gradients' bytes."""
    train, _ = check_data(config.data, batch_sizes=[], worker_counts=[])
    num_bytes = gradient_bytes(config.model, build_task(config.task, train.classes).num_outputs)
    fastest = []
    for count in (_SMALL, num_bytes // 4):
        numbers = torch.zeros(count)
        work = (dist.all_reduce(numbers) if workers > 1 else None for _ in range(_REDUCTIONS))
        fastest.append(_fastest_s(work, effort))
    return [*fastest, num_bytes]


def _fastest_s(work: Iterator[object], effort: Effort) -> float:
    """Return the seconds of the fastest piece of work; the first, which warms up, isn't counted.

    What else the machine does only ever adds to a time.
    """
    clock = time.process_time if effort.clock == "cpu" else time.perf_counter
    next(work)
    seconds, start = [], clock()
    for _ in work:
        now = clock()
        seconds.append(now - start)
        start = now
    return min(seconds)


def _learner(config: TrainConfig) -> Learner:
    train, _ = check_data(config.data, batch_sizes=[], worker_counts=[])
    task = build_task(config.task, train.classes)
    torch.manual_seed(config.seed)
    return Learner(config, build_model(config.model, num_classes=task.num_outputs), task, _CPU)


def _batches(config: TrainConfig, stage: TrainingStage, rank: int, workers: int, steps: int) -> Iterator[Batch]:
    return iter(stage_batches(config, stage, start=0, stop=steps * stage.batch_size, rank=rank, world_size=workers))


def _inputs(learner: Learner, batch: Batch, stage: TrainingStage, workers: int) -> tuple[Tensor, Tensor]:
    return mixed_inputs(
        batch, stage, config=learner.config, task=learner.task, device=learner.device, world_size=workers
    )


def _step(learner: Learner, images: Tensor, targets: Tensor) -> object:
    return learner.step(images, targets, seed=0, lr=1e-3, micro=len(images))

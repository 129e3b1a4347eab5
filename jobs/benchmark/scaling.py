"""Scaling on this machine: a recipe's steps on 1 and on R workers, and the parts of a step.

`python -m jobs.benchmark scaling [RECIPE] [--workers R]`. Plain processes over gloo, one thread each, with the loader,
the model and the optimizer of a run; they decode between steps. With `--measured`, nothing is measured here: R workers
are predicted from a GPU's steps. See docs/scaling.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.table import Table
from torch import Tensor

from datasets.checks import check_data
from datasets.loading.batch import Batch
from jobs.benchmark.flags import check_above_0, check_at_least
from jobs.benchmark.prediction import as_table, predict, read_steps
from jobs.common.cli import parse_recipe
from jobs.common.display import wide_console
from model.factory import build_model
from pipeline.config import TrainConfig
from pipeline.run.preflight import with_numbers, with_numbers_of_data
from pipeline.schedule.stages import TrainingStage
from pipeline.training.inputs import StepInputs, stage_batches
from pipeline.training.learner import Learner
from pipeline.training.task import build_task

_REDUCTIONS = 20
_CLASSES = 1000
"""For a prediction, which doesn't read the recipe's data: as many as ImageNet's."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Flags of the benchmark itself; the recipe's fields are flags as well."""

    workers: int = 2
    """R: training processes on this machine, with one thread each."""
    steps: int = 4
    """Timed steps per stage, part and round."""
    rounds: int = 3
    """Number of rounds, in which one worker, all workers and the parts are measured in turn; the fastest step
    counts."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall: elapsed time; cpu: CPU time of rank 0, without waiting, for a machine with other load."""
    measured: Path | None = None
    """JSON of `jobs.benchmark gpu --json` with the recipe's model: predict from its steps instead of measuring here."""
    gb_per_s: float = 25.0
    """With `--measured`: bandwidth of the all-reduce (10^9 bytes/s), which nccl-tests call busbw."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "workers", "steps", "rounds")
        check_above_0(self, "gb_per_s")


_Work = Callable[[int, int, TrainConfig, Options], list[float]]
"""rank, workers, what is trained, how much is measured -> figures"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpeed:
    """One stage on this machine."""

    image_size: int
    one: float
    """Images a second of one worker."""
    all: float
    """Images a second of all workers."""
    efficiency: float
    """Share of R times one worker's speed."""
    compute_ms: float
    """Of one worker's step with the whole batch, without decoding."""
    decode_ms: float
    """Of the whole batch, on one core."""


def main(argv: Sequence[str]) -> int:
    """Measure and show; returns the exit code."""
    words = list(argv)
    if not words or words[0].startswith("-"):
        words.insert(0, "demo_scratch")
    config, options = parse_recipe(words, prog="python -m jobs.benchmark scaling", extra=Options)
    assert options is not None
    if options.measured is not None:
        return _predict(config, options, options.measured)
    config = with_numbers(replace(config, data=replace(config.data, loader_workers=0)))
    batch_sizes = [stage.batch_size for stage in config.stages]
    train, _ = check_data(config.data, batch_sizes=batch_sizes, worker_counts=[options.workers])
    config = replace(config, task=with_numbers_of_data(config.task, config.data, train))
    stages, reduce_ms = measure(config, options)
    if options.json:
        print(json.dumps({"all_reduce_ms": reduce_ms, "stages": [asdict(stage) for stage in stages]}, indent=1))
    else:
        wide_console().print(_table(config.name, stages, reduce_ms, options))
    return 0


def _predict(config: TrainConfig, options: Options, measured: Path) -> int:
    steps = read_steps(measured, config.model.name)
    predicted = predict(steps, config.model, classes=_CLASSES, workers=options.workers, gb_per_s=options.gb_per_s)
    if options.json:
        print(json.dumps([asdict(stage) for stage in predicted], indent=1))
    else:
        wide_console().print(as_table(config.name, predicted, workers=options.workers, gb_per_s=options.gb_per_s))
    return 0


def measure(config: TrainConfig, options: Options) -> tuple[list[StageSpeed], float]:
    """Return the recipe's stages on one worker and on all, and the milliseconds of an all-reduce of the gradients."""
    one, many, parts, reduced = [], [], [], []
    for _ in range(options.rounds):  # in turns: what else the machine does falls on all of them
        parts.append(_in_processes(1, _time_parts, config, options))
        one.append(_in_processes(1, _time_steps, config, options))
        many.append(_in_processes(options.workers, _time_steps, config, options))
        reduced.append(_in_processes(options.workers, _time_all_reduce, config, options))
    part_s, one_s, many_s, (reduce_s,) = (_fastest(rounds) for rounds in (parts, one, many, reduced))
    stages = [
        StageSpeed(
            image_size=stage.image_size,
            one=stage.batch_size / one_s[index],
            all=stage.batch_size / many_s[index],
            efficiency=one_s[index] / many_s[index] / options.workers,
            compute_ms=1000 * part_s[2 * index],
            decode_ms=1000 * part_s[2 * index + 1],
        )
        for index, stage in enumerate(config.stages)
    ]
    return stages, 1000 * reduce_s


def _fastest(rounds: list[list[float]]) -> list[float]:
    """Return each figure's smallest over the rounds: what else the machine does only ever adds to a time."""
    return [min(values) for values in zip(*rounds, strict=True)]


def _table(name: str, stages: Sequence[StageSpeed], reduce_ms: float, options: Options) -> Table:
    table = Table(
        title=f"{name}, 1 and {options.workers} workers of this machine, images/s ({options.clock} time)\n"
        f"fastest of {options.steps} steps x {options.rounds} rounds; all-reduce of the gradients: {reduce_ms:.1f} ms",
        title_justify="left",
    )
    for column in ("px", "compute ms", "decode ms", "1 worker", f"{options.workers} workers", "efficiency"):
        table.add_column(column, justify="right")
    for row in stages:
        parts = (f"{row.compute_ms:.0f}", f"{row.decode_ms:.0f}")
        table.add_row(str(row.image_size), *parts, f"{row.one:.1f}", f"{row.all:.1f}", f"{row.efficiency:.0%}")
    return table


# In the processes -----------------------------------------------------------------------------------------------------


def _in_processes(workers: int, work: _Work, config: TrainConfig, options: Options) -> list[float]:
    """Run `work` in so many processes; return what rank 0 measured."""
    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-") as folder:
        mp.spawn(_process, args=(workers, folder, work, config, options), nprocs=workers)
        return [float(value) for value in json.loads(Path(folder, "measured.json").read_text())]


def _process(rank: int, workers: int, folder: str, work: _Work, config: TrainConfig, options: Options) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    measured = work(rank, workers, config, options)
    if rank == 0:
        Path(folder, "measured.json").write_text(json.dumps(measured))
    if workers > 1:
        dist.destroy_process_group()


def _time_steps(rank: int, workers: int, config: TrainConfig, options: Options) -> list[float]:
    """Return the seconds of a whole step in every stage."""
    learner = _learner(config)
    seconds = []
    for stage in config.stages:
        batches = _batches(config, stage, rank, workers, options.steps + 1)
        steps = (_step(learner, *_inputs(learner, batch, stage)) for batch in batches)
        seconds.append(_fastest_s(steps, options))
    return seconds


def _time_parts(rank: int, workers: int, config: TrainConfig, options: Options) -> list[float]:
    """Return for every stage the seconds of a step with inputs that are there, and of decoding its batch."""
    learner = _learner(config)
    seconds = []
    for stage in config.stages:
        decode_s = _fastest_s(_batches(config, stage, 0, 1, options.steps + 1), options)
        inputs = _inputs(learner, next(_batches(config, stage, 0, 1, 1)), stage)
        seconds += [_fastest_s((_step(learner, *inputs) for _ in range(options.steps + 1)), options), decode_s]
    return seconds


def _time_all_reduce(rank: int, workers: int, config: TrainConfig, options: Options) -> list[float]:
    """Return the seconds of adding up the model's gradients over all workers."""
    gradients = torch.zeros(sum(weight.numel() for weight in _learner(config).model.parameters()))
    return [_fastest_s((dist.all_reduce(gradients) if workers > 1 else None for _ in range(_REDUCTIONS)), options)]


def _fastest_s(work: Iterator[object], options: Options) -> float:
    """Return the seconds of the fastest piece of work; the first, which warms up, isn't counted."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
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


def _inputs(learner: Learner, batch: Batch, stage: TrainingStage) -> tuple[Tensor, Tensor]:
    return StepInputs(batch.to(learner.device), stage, learner.config, learner.task, learner.device).part(slice(None))


def _step(learner: Learner, images: Tensor, targets: Tensor) -> object:
    return learner.step(images, targets, seed=0, lr=1e-3, micro=len(images))

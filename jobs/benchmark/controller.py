"""The cost of a run's controller while many workers report once per second and operators ask for its status.

A controller as it is, in an actor; simulated workers and operators in processes of their own. Then a day's worth of
reports and decisions, as fast as they go, into one in this process, to see whether its memory stays bounded.
"""

from __future__ import annotations

import gc
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from infra.cluster.config import ClusterConfig
from infra.cluster.connect import connect, start_actor
from jobs.benchmark.flags import check_above_0, check_at_least, read_flags
from jobs.common.display import wide_console
from pipeline.control.controller import StageController
from pipeline.control.plan import RunPlan
from pipeline.control.run_status import RunIdentity
from pipeline.run.controller_client import ControllerClient
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import AdaptiveConfig, StageSpan, TrainingStage

SPANS = tuple(
    StageSpan(index, TrainingStage(image_size=128, epochs=87.5, batch_size=4096), index * 10**8, (index + 1) * 10**8)
    for index in range(4)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    workers: int = 1000
    """Simulated workers, each of which reports once per second."""
    operators: int = 10
    """Simulated operators, each of which asks for the status every `every_s` seconds."""
    every_s: float = 1.0
    """Seconds between two requests of an operator."""
    seconds: float = 30.0
    """Length of the measurement, in seconds."""
    day_s: float = 86_400.0
    """Simulated time of the memory test, in seconds; 0: no memory test."""
    day_workers: int = 1000
    """Simulated workers of the memory test, each of which reports once per simulated second."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "workers", "operators", "day_workers")
        check_above_0(self, "every_s", "seconds")
        check_at_least(self, 0, "day_s")


@dataclass(frozen=True, slots=True)
class ControllerLoad:
    """What was measured."""

    reports_per_s: float
    """Reports that the controller took."""
    answers: int
    """Questions that were answered."""
    status_p50_ms: float
    status_p99_ms: float
    decide_p50_ms: float
    decide_p99_ms: float
    cpu_share: float
    """CPU seconds of the controller's process per second."""
    rss_mb: float
    """Resident memory of the controller's process, in MB (10^6 bytes)."""
    day_reports: int
    """Reports of the day in the memory part."""
    day_growth_kb: float
    """Memory that the objects of the last three quarters of a day's reports left behind, in kB."""


def progress_at(cursor: int) -> Progress:
    """Return what rank 0 of a run on ImageNet tells: 30 metrics, four stages, 100 evaluations."""
    return Progress(
        cursor=cursor,
        stage=0,
        spans=SPANS,
        samples_per_epoch=1_281_167,
        num_workers=64,
        metrics={f"train/metric_{number}": 1.0 for number in range(29)} | {"train/images_per_s": 1e4},
        stage_results=({"samples": 10**6, "train_s": 100.0, "eval_s": 10.0},),
        evaluations=tuple({"cursor": number, "train_eval/loss": 1.0, "val/loss": 1.0} for number in range(100)),
    )


class ProcessFacts:
    """What a process uses: of the controller's, which this is mixed into."""

    def usage(self) -> tuple[float, float]:
        """Return CPU seconds so far and resident memory in MB."""
        import psutil

        process = psutil.Process()
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss / 1e6


class MeasuredController(StageController, ProcessFacts):
    """A controller whose process can be asked what it uses."""


class Crowd:
    """Some of the simulated workers, or one operator, or rank 0, in a process of its own."""

    def __init__(self, controller: ControllerClient) -> None:
        self.controller = controller

    def report(self, ranks: Sequence[int], seconds: float) -> int:
        """Have each rank report once a second, spread over it; return the number of reports."""
        started, count = time.perf_counter(), 0
        while (now := time.perf_counter() - started) < seconds:
            due = int(now * len(ranks))
            for number in range(count, due):
                self.controller.report(ranks[number % len(ranks)], number, 0.01)
            count = due
            time.sleep(0.005)
        return count

    def ask(self, seconds: float, every_s: float) -> list[float]:
        """Ask for the status again and again; return the seconds that each answer took."""
        return self._timed(seconds, every_s, lambda number: self.controller.status())

    def decide(self, seconds: float) -> list[float]:
        """Come to a decision point once a second, as rank 0 does; return the seconds that each took."""
        return self._timed(seconds, 1.0, lambda number: self.controller.decide(progress_at(number * 4096)))

    def _timed(self, seconds: float, every_s: float, call: Callable[[int], object]) -> list[float]:
        end, times = time.perf_counter() + seconds, list[float]()
        while (started := time.perf_counter()) < end:
            call(len(times))
            times.append(time.perf_counter() - started)
            time.sleep(max(0.0, every_s - times[-1]))
        return times


def main(argv: Sequence[str]) -> int:
    """Run both parts; print what they measured."""
    options = read_flags(Options, argv, __doc__)
    result = measure(options)
    if options.json:
        print(json.dumps(asdict(result), indent=1))
        return 0
    table = Table(
        title=f"{options.workers} workers reporting once per second, {options.operators} operators, "
        f"{options.seconds:g} s",
        title_justify="left",
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in asdict(result).items():
        table.add_row(name, f"{value:,.2f}")
    wide_console().print(table)
    return 0


def measure(options: Options) -> ControllerLoad:
    """Return what the controller costs."""
    import ray

    growth = day_growth(options.day_s, options.day_workers) if options.day_s else 0.0
    connect(ClusterConfig(), num_workers=1)
    actor = start_actor(MeasuredController, plan_for(2), _no_group, name="run-benchmark")
    controller = ControllerClient(actor)
    for rank in range(options.workers):
        controller.join(rank, f"node-{rank // 8}", "", options.workers)
    crowd = ray.remote(Crowd).options(num_cpus=0, max_concurrency=16)
    ranks = list(range(options.workers))
    reporters = [crowd.remote(controller) for _ in range(2)]
    operators = [crowd.remote(controller) for _ in range(2)]
    rank_0 = crowd.remote(controller)
    ray.get([one.__ray_ready__.remote() for one in (*reporters, *operators, rank_0)])
    controller.decide(progress_at(0))
    before, _ = ray.get(actor.usage.remote())
    started = time.perf_counter()
    reports = [one.report.remote(ranks[index::2], options.seconds) for index, one in enumerate(reporters)]
    answers = [_asks(operators[index % 2], options) for index in range(options.operators)]
    decided = rank_0.decide.remote(options.seconds)
    status_s = np.concatenate(ray.get(answers))
    decide_s, count = np.array(ray.get(decided)), sum(ray.get(reports))
    after, rss = ray.get(actor.usage.remote())
    took = time.perf_counter() - started
    return ControllerLoad(
        reports_per_s=count / took,
        answers=len(status_s),
        status_p50_ms=1000 * float(np.percentile(status_s, 50)),
        status_p99_ms=1000 * float(np.percentile(status_s, 99)),
        decide_p50_ms=1000 * float(np.percentile(decide_s, 50)),
        decide_p99_ms=1000 * float(np.percentile(decide_s, 99)),
        cpu_share=(after - before) / took,
        rss_mb=rss,
        day_reports=int(options.day_s) * options.day_workers,
        day_growth_kb=growth,
    )


def _asks(operator: Any, options: Options) -> Any:
    return operator.ask.remote(options.seconds, options.every_s)


def plan_for(num_workers: int) -> RunPlan:
    """Return the plan of the run that is measured."""
    stages = tuple(span.stage for span in SPANS)
    return RunPlan(identity=RunIdentity(), stages=stages, num_workers=num_workers, rules=AdaptiveConfig())


def _no_group(segment: Any) -> None:
    threading.Event().wait()


def day_growth(seconds: float, workers: int) -> float:
    """Return by how many kB the controller's objects grew in the last three quarters of a day's reports."""
    controller = StageController(plan_for(2), _no_group)
    tracemalloc.start()
    at_quarter = 0
    for second in range(int(seconds)):
        for rank in range(workers):
            controller.report(rank, second, 0.01)
        if second % 10 == 0:
            controller.decide(progress_at(second))
            controller.saved(f"s3://bucket/checkpoints/{second}", second)
            controller.note(f"note {second}")
        if second == int(seconds) // 4:
            gc.collect()
            at_quarter, _ = tracemalloc.get_traced_memory()
    gc.collect()
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (now - at_quarter) / 1000

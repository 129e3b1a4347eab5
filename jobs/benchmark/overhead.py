"""End-to-end overhead over plain training: steps/s of a run (Ray, controller, MLflow, checkpoints), and of a
`torchrun` loop with the same loader, model and optimizer, in turns. With --start: where the seconds before the first
step go.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from rich.table import Table

from datasets.checks import check_data
from datasets.loading.sample_order import sample_order
from infra.cluster.code_package import ROOT
from infra.cluster.config import ClusterConfig
from infra.tracking.config import TrackingConfig
from jobs.benchmark.flags import check_at_least, read_flags
from jobs.benchmark.start import show_starts
from jobs.common.display import wide_console
from jobs.common.parsing import UsageError
from jobs.recipes.catalog import RECIPES
from pipeline.checkpoint.head import PREFIX, cursor_of
from pipeline.config import TrainConfig
from pipeline.training_config import CheckpointConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    recipe: Annotated[str, tyro.conf.Positional] = "demo_scratch"
    """Recipe whose last stage is trained."""
    workers: int = 2
    """Number of training processes."""
    steps: int = 300
    """Steps per round."""
    warm_up: int = 50
    """Steps at the start that are not counted."""
    checkpoint_every_s: float = 60.0
    """Seconds between the run's checkpoints."""
    rounds: int = 3
    """Number of rounds."""
    start: bool = False
    """Measure the start of a run of the whole recipe instead: its milestones, and the CPU time and memory of each
    process."""
    settle_s: float = 60.0
    """With --start: seconds from the first step to the measurement of memory."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"no recipe is named {self.recipe!r}: there are {', '.join(RECIPES)}")
        check_at_least(self, 1, "rounds", "workers")
        check_at_least(self, 0, "settle_s")
        if not 0 <= self.warm_up < self.steps - 1:
            raise UsageError(f"--warm-up {self.warm_up} leaves none of --steps {self.steps} to count")


def main(argv: Sequence[str]) -> int:
    """Measure rounds of both, and print steps a second and their ratios."""
    options = read_flags(Options, argv, __doc__)
    if options.start:
        show_starts(options.recipe, options.workers, options.rounds, options.settle_s)
        return 0
    counted = options.steps - 1 - options.warm_up
    one_stage(options, folder="")  # data or workers that won't do are said here, in one line, not by torchrun
    table = Table(title=f"steps/s, {options.workers} workers, {counted} steps a round", title_justify="left")
    for name in ("round", "plain", "whole", "checkpoints", "ratio"):
        table.add_column(name, justify="right")
    ratios, saved = [], 0
    for number in range(options.rounds):
        # In turns, and each first in every other round: what else the machine does falls on both.
        order = (_plain, _whole) if number % 2 == 0 else (_whole, _plain)
        taken = {measure: measure(options) for measure in order}
        plain, whole = (counted / taken[measure].seconds for measure in (_plain, _whole))
        ratios.append(whole / plain)
        saved += taken[_whole].checkpoints
        table.add_row(
            *(str(number + 1), f"{plain:.2f}", f"{whole:.2f}", str(taken[_whole].checkpoints), f"{ratios[-1]:.3f}")
        )
    console = wide_console()
    console.print(table)
    console.print(f"median of the ratios: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if not saved:
        console.print("note: no checkpoint fell into the counted steps; give more --steps, or --checkpoint-every-s")
    return 0


def one_stage(options: Options, folder: str) -> TrainConfig:
    """Return the recipe's last stage alone, as long as a round, with everything that it writes in a folder.

    Raises:
        UsageError: the recipe trains in a way that the plain loop doesn't.
    """
    base = RECIPES[options.recipe]()
    trainer = base.trainer
    if trainer.compile or trainer.micro_batch_size:
        raise UsageError(
            f"{options.recipe}: the plain loop supports neither trainer.compile nor trainer.micro_batch_size"
        )
    if base.optimizer.clip_norm is not None:
        raise UsageError(f"{options.recipe}: the plain loop doesn't clip gradients, as optimizer.clip_norm has it")
    stage = base.stages[-1]
    manifest, _ = check_data(base.data, batch_sizes=[stage.batch_size], worker_counts=[options.workers])
    samples = sample_order(base.data, manifest, seed=base.seed).samples_per_epoch
    return replace(
        base,
        name="overhead",
        storage=folder,
        stages=(replace(stage, epochs=options.steps * stage.batch_size / samples, num_workers=0),),
        cluster=ClusterConfig(num_workers=options.workers, gpus_per_worker=_gpus(), address="local"),
        trainer=replace(trainer, eval_every_epochs=1e6),
        checkpoint=CheckpointConfig(every_epochs=1e6, every_s=options.checkpoint_every_s, keep=1000),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
    )


def _gpus() -> int:
    """Return how many GPUs a worker has: one where there are any, as the plain loop takes it."""
    import torch

    return int(torch.cuda.is_available())


class _Taken(NamedTuple):
    seconds: float
    """From the first counted step to the last."""
    checkpoints: int = 0
    """Taken meanwhile."""


def _plain(options: Options) -> _Taken:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.workers}"]
    flags = [options.recipe, "--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += ["-m", "jobs.benchmark.plain", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        # A rank's own error comes before the launcher's account of it.
        errors = re.findall(r"^(?:\[rank\d+\]: )?([\w.]*(?:Error|Exception)\b.*)", done.stderr, re.MULTILINE)
        raise UsageError(f"the plain loop failed: {errors[0] if errors else f'exit code {done.returncode}'}")
    return _Taken(float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"]))


def _whole(options: Options) -> _Taken:
    import ray

    from jobs.common.follow import follow_to_end
    from pipeline.run.preflight import preflight
    from pipeline.run.sample_log import VARIABLE

    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "steps")
        log.mkdir()
        os.environ[VARIABLE] = str(log)
        config = one_stage(options, folder)
        try:
            status = follow_to_end(wide_console(), preflight(config))
        except RuntimeError as error:
            raise UsageError(f"the whole run failed: {error}") from error
        finally:
            ray.shutdown()  # of this process's own: its processes would have the CPUs beside the plain loop
        if status.phase != "finished":
            raise UsageError(f"the whole run was {status.phase} before its end: measure again")
        lines = [json.loads(line) for path in log.glob("*.jsonl") for line in path.read_text().splitlines()]
        steps = sorted((line["time"], line["cursor"]) for line in lines if line["rank"] == 0)
        (start, first), (stop, last) = steps[options.warm_up], steps[options.steps - 1]
        saved = [
            path for path in Path(folder, config.name, PREFIX).iterdir() if first < (cursor_of(path.name) or 0) <= last
        ]
        return _Taken(float(stop - start), len(saved))

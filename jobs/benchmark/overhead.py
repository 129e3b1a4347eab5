"""What the whole costs beside plain training: steps a second of a run (Ray, controller, MLflow, checkpoints), and of a
`torchrun` loop with the same loader, model and optimizer, in turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from datasets.config import check_data
from infra.cluster import ROOT, ClusterConfig
from infra.tracking_config import TrackingConfig
from jobs.benchmark.flags import check_at_least, read_flags
from jobs.cli import UsageError
from jobs.display import Follower, wide_console
from jobs.recipes import RECIPES
from pipeline.config import CheckpointConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    recipe: Annotated[str, tyro.conf.Positional] = "demo"
    """Recipe whose last stage is trained."""
    workers: int = 2
    """Training processes."""
    steps: int = 300
    """Steps of a round."""
    warm_up: int = 50
    """First steps, not counted."""
    checkpoint_every_s: float = 60.0
    """Pace of the run's checkpoints, in seconds."""
    rounds: int = 3
    """How often each is measured."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"no recipe is named {self.recipe!r}: there are {', '.join(RECIPES)}")
        check_at_least(self, 1, "rounds", "workers")
        if not 0 <= self.warm_up < self.steps - 1:
            raise UsageError(f"--warm-up {self.warm_up} leaves none of --steps {self.steps} to count")


def main(argv: Sequence[str]) -> int:
    """Measure rounds of both, and print steps a second and their ratios."""
    options = read_flags(Options, argv, __doc__)
    counted = options.steps - 1 - options.warm_up
    one_stage(options, folder="")  # data or workers that won't do are said here, in one line, not by torchrun
    table = Table(title=f"steps a second, {options.workers} workers, {counted} steps a round", title_justify="left")
    for name in ("round", "plain", "whole", "ratio"):
        table.add_column(name, justify="right")
    ratios = []
    for number in range(options.rounds):
        # In turns, and each first in every other round: what else the machine does falls on both.
        order = (_plain_s, _whole_s) if number % 2 == 0 else (_whole_s, _plain_s)
        seconds = {measure: measure(options) for measure in order}
        plain, whole = counted / seconds[_plain_s], counted / seconds[_whole_s]
        ratios.append(whole / plain)
        table.add_row(str(number + 1), f"{plain:.2f}", f"{whole:.2f}", f"{ratios[-1]:.3f}")
    console = wide_console()
    console.print(table)
    console.print(f"median of the ratios: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return 0


def one_stage(options: Options, folder: str) -> TrainConfig:
    """Return the recipe's last stage alone, as long as a round, with everything that it writes in a folder."""
    base = RECIPES[options.recipe]()
    stage = base.stages[-1]
    manifest, _ = check_data(base.data, batch_sizes=[stage.batch_size], worker_counts=[options.workers])
    samples = sum(manifest.shard_counts)
    return replace(
        base,
        name="overhead",
        storage=folder,
        stages=(replace(stage, epochs=options.steps * stage.batch_size / samples),),
        cluster=ClusterConfig(num_workers=options.workers),
        trainer=replace(base.trainer, eval_every_epochs=1e6),
        checkpoint=CheckpointConfig(every_epochs=1e6, every_s=options.checkpoint_every_s),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
    )


def _plain_s(options: Options) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.workers}"]
    flags = [options.recipe, "--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += ["-m", "jobs.benchmark.plain", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"the plain loop ended with: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def _whole_s(options: Options) -> float:
    import ray

    from pipeline.launch import start_controller
    from pipeline.preflight import preflight
    from pipeline.sample_log import VARIABLE

    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "steps")
        log.mkdir()
        os.environ[VARIABLE] = str(log)
        ready = preflight(one_stage(options, folder))
        controller = start_controller(ready)
        Follower(wide_console(), ready.config, controller, controller.run.remote()).follow()
        ray.shutdown()  # of this process's own: its processes would have the CPUs beside the plain loop
        lines = [json.loads(line) for path in log.glob("*.jsonl") for line in path.read_text().splitlines()]
        ends = sorted(line["time"] for line in lines if line["rank"] == 0)
        return float(ends[options.steps - 1] - ends[options.warm_up])

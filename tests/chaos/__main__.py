"""Random kills over one run, and what they change: nothing. `python -m tests.chaos [--option value ...]`.

A small recipe trains over an S3 server (shards and checkpoints) and an MLflow server, on a cluster of several nodes:
once undisturbed, then while workers, nodes, the driver, the run's controller, the S3 server and the MLflow server are
ended by SIGKILL at random steps, and come back; and a submission is paused by SIGSTOP, a second one of the same name
goes on elsewhere, and the first one wakes. With the same number of workers the weights must be equal bit for bit;
with a range of workers the samples must be the same ones, each used once. Every row of metrics is in MLflow once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from rich.table import Table

from jobs.benchmark.flags import check_above_0, check_at_least, read_flags
from jobs.benchmark.nodes import Nodes
from jobs.common.cli import run_main
from jobs.common.display import wide_console
from jobs.common.parsing import UsageError
from pipeline.run.sample_log import VARIABLE
from tests.chaos.run import Killer, Place, Run
from tests.chaos.verdict import Verdict, compare
from tests.support.servers import MlflowServer, S3Server

KINDS = ("worker", "driver", "controller", "takeover", "S3", "node", "MLflow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the command."""

    kills: int = 20
    """How many there are in each run."""
    seed: int = 0
    """What they are drawn from."""
    only: str = ""
    """The one kind of them; empty: each kind about as often as the others."""
    kill_for_s: float = math.inf
    """Kills that would come later than this after a run's start, in seconds, are left out."""
    steps_a_kill: int = 15
    """Length of the run: steps of training for each kill."""
    fixed: bool = True
    """Kill a run of two workers, whose weights must be equal."""
    elastic: bool = True
    """Kill a run of one to two workers too, whose number changes as nodes are lost and come back."""
    json: bool = False
    """Print what the kills have changed as JSON."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "kills", "steps_a_kill")
        check_above_0(self, "kill_for_s")
        if self.only and self.only not in KINDS:
            raise UsageError(f"--only {self.only}: expected one of {', '.join(KINDS)}")


def main(argv: Sequence[str]) -> int:
    """Train undisturbed and under fire, compare, and print. Exit code 1: something differs."""
    options = read_flags(Options, argv, __doc__)
    verdicts = run_all(options)
    if options.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts]))
    else:
        _show(verdicts)
    return 0 if all(verdict.is_clean for verdict in verdicts) else 1


def run_all(options: Options) -> list[Verdict]:
    """Train the undisturbed run and those that are disturbed, and say what the kills have changed."""
    logging.getLogger("infra").setLevel(logging.ERROR)
    with _place() as place:
        epochs = max(4, options.kills * options.steps_a_kill // place.steps_an_epoch)
        whole = Run(place, "undisturbed", (2,), epochs)
        whole.finish()
        verdicts = []
        for workers in [(2,)] * options.fixed + [(1, 2)] * options.elastic:
            run = Run(place, "fixed" if len(workers) == 1 else "elastic", workers, epochs)
            killer = Killer(place, run, Random(options.seed), time.monotonic() + options.kill_for_s)
            killer.kill_all(planned(options, len(workers) > 1), num_steps=epochs * place.steps_an_epoch)
            verdicts.append(compare(place, run, whole, killer.done, exact=len(workers) == 1))
        return verdicts


def planned(options: Options, elastic: bool) -> list[str]:
    """Return the kinds of kills, each about as often as the others over both runs, in an order that the seed draws."""
    first = options.kills if elastic and options.fixed else 0
    kinds = [options.only or KINDS[(first + index) % len(KINDS)] for index in range(options.kills)]
    Random(options.seed + elastic).shuffle(kinds)
    return kinds


@contextmanager
def _place() -> Iterator[Place]:
    """Start the servers and the cluster; leave nothing running."""
    with tempfile.TemporaryDirectory(prefix="crescendo-chaos-") as name:
        folder = Path(name)
        s3, mlflow = S3Server(folder / "s3"), MlflowServer(folder / "mlflow")
        (folder / "samples").mkdir()
        os.environ.update(s3.client_environment() | {VARIABLE: str(folder / "samples")})  # the nodes inherit it
        try:
            s3.start()
            mlflow.start()
            with Nodes(2) as nodes:
                place = Place(folder, nodes, s3, mlflow)
                place.write_data()
                yield place
        finally:
            mlflow.kill()
            s3.kill()


def _show(verdicts: Sequence[Verdict]) -> None:
    table = Table(title="random kills over one run", title_justify="left")
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for verdict in verdicts:
        table.add_column(verdict.name, justify="right")
        for name, value in verdict.table().items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        table.add_row(name, *values)
    wide_console().print(table)


if __name__ == "__main__":
    run_main(main)

"""Random kills over one run, and what they change: nothing. `python -m tests.chaos [--option value ...]`.

A small recipe trains over an S3 server (shards and checkpoints) and an MLflow server, on a cluster of several nodes:
once undisturbed, then while workers, nodes, the driver, the run's controller, the S3 server and the MLflow server are
ended by SIGKILL at random steps, and come back; and a submission is paused by SIGSTOP, a second one of the same name
goes on elsewhere, and the first one wakes. With the same number of workers the weights must be equal bit for bit;
with a range of workers the samples must be the same ones, each used once. Every row of metrics is in MLflow once.

With `--minutes` it is a soak: such runs follow one another on the same cluster and servers until the time is over, and
there are faults besides: processes that are paused for a while, a full disk, a slow network that loses connections, and
second submissions. Memory and open files of what lives longer than a run, and of the runs' parts, must not grow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import psutil
from rich.table import Table

from jobs.benchmark.flags import check_at_least, read_flags
from jobs.benchmark.nodes import Nodes
from jobs.common.cli import run_main
from jobs.common.display import wide_console
from jobs.common.parsing import UsageError
from pipeline.run.sample_log import VARIABLE
from tests.chaos.faults import FAULTS
from tests.chaos.growth import Growth
from tests.chaos.killer import SECOND, Killer
from tests.chaos.run import Place, Run
from tests.chaos.verdict import Verdict, compare
from tests.support.servers import MlflowServer, S3Server, Server
from tests.support.slow_network import slow_network
from tests.support.small_disk import small_disk

KINDS = ("worker", "driver", "controller", "takeover", "S3", "node", "MLflow")
SERVERS = ("S3 server", "MLflow server")
"""Their growth is shown and not judged: they are not this project's, and keep what they are given."""
DISK_BYTES = 16 * 2**20
"""Size of the disk of the shard cache; the shards have under 1 MB."""
GCS_MEMORY = {
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    "RAY_maximum_gcs_dead_node_cached_count": "10",
    "RAY_maximum_gcs_dead_worker_cached_count": "100",
    "RAY_task_events_max_num_task_in_gcs": "1000",
}
"""How many ended actors, nodes, workers and tasks Ray's head remembers: by default 1,000 to 100,000 of each, towards
which it would grow over all rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the command."""

    kills: int = 20
    """How many there are in each run."""
    seed: int = 0
    """What they are drawn from."""
    only: str = ""
    """The one kind of them; empty: each kind about as often as the others."""
    minutes: float = 0.0
    """Soak: how long runs follow one another, with all kinds of faults; the last one is finished. 0: one of each."""
    kill_for_s: float = 0.0
    """Kills that would come later than this after a run's start, in seconds, are left out. 0: none are."""
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
        check_at_least(self, 0, "minutes", "kill_for_s")
        if self.only and self.only not in (*KINDS, *FAULTS, SECOND):
            raise UsageError(f"--only {self.only}: expected one of {', '.join((*KINDS, *FAULTS, SECOND))}")
        if not (self.fixed or self.elastic):
            raise UsageError("--no-fixed --no-elastic: no run is left")


def main(argv: Sequence[str]) -> int:
    """Train undisturbed and under fire, compare, and print. Exit code 1: something differs, or has grown."""
    options = read_flags(Options, argv, __doc__)
    verdicts, growth = run_all(options)
    if options.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts]))
    else:
        _show(verdicts)
        if options.minutes:
            show_growth(growth)
    wrong = [fault for verdict in verdicts for fault in verdict.faults()] + growth.grown(but=SERVERS)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def run_all(options: Options) -> tuple[list[Verdict], Growth]:
    """Train the undisturbed run and those that are disturbed, and say what the faults have changed."""
    logging.getLogger("infra").setLevel(logging.ERROR)
    with _place() as place:
        epochs = max(4, options.kills * options.steps_a_kill // place.steps_an_epoch)
        whole = Run(place, "undisturbed", (2,), epochs)
        whole.finish()
        verdicts: list[Verdict] = []
        growth = Growth()
        kinds = [False] * options.fixed + [True] * options.elastic
        until_s = time.monotonic() + options.minutes * 60
        while len(verdicts) < len(kinds) or time.monotonic() < until_s:
            number, which = divmod(len(verdicts), len(kinds))
            verdicts.append(_disturbed(place, options, whole, growth, number=number, elastic=kinds[which]))
            if options.minutes:
                print(time.strftime("%X"), verdicts[-1].table(), growth.rounds[-1], file=sys.stderr)
        return verdicts, growth


def _disturbed(place: Place, options: Options, whole: Run, growth: Growth, *, number: int, elastic: bool) -> Verdict:
    """Train a run under fire, with an order of faults that its number draws, and compare it."""
    name = ("elastic" if elastic else "fixed") + (f"-{number}" if number else "")
    run = Run(place, name, (1, 2) if elastic else (2,), whole.epochs)
    seed = options.seed + number
    killer = Killer(place, run, Random(seed), time.monotonic() + (options.kill_for_s or math.inf))
    with growth.watching(_parts(place, run)):
        kinds = planned(options, elastic, seed, disk=place.disk is not None)
        killer.kill_all(kinds, num_steps=whole.epochs * place.steps_an_epoch)
    return compare(place, run, whole, killer.done, exact=not elastic)


def planned(options: Options, elastic: bool, seed: int, *, disk: bool) -> list[str]:
    """Return the kinds of kills, each about as often as the others over both runs, in an order that the seed draws."""
    all_kinds = [*KINDS, *(kind for kind in (*FAULTS, SECOND) if options.minutes and (disk or kind != "disk"))]
    first = options.kills if elastic and options.fixed else 0
    kinds = [options.only or all_kinds[(first + index) % len(all_kinds)] for index in range(options.kills)]
    Random(seed + elastic).shuffle(kinds)
    return kinds


def _parts(place: Place, run: Run) -> dict[str, Callable[[], Sequence[psutil.Process]]]:
    """Return what is looked at in a round: the processes of each part."""
    nodes = place.nodes

    def server(of: Server) -> Callable[[], Sequence[psutil.Process]]:
        return lambda: [process] if (process := of.process()) else []

    return {
        "head": nodes.head,
        "node": nodes.raylets,
        "worker": lambda: [worker for node in [*nodes.nodes] for worker in nodes.train_workers(node)],
        "controller": nodes.controllers,
        "driver": run.driver,
        "S3 server": server(place.s3),
        "MLflow server": server(place.mlflow),
    }


@contextmanager
def _place() -> Iterator[Place]:
    """Start the servers and the cluster; leave nothing running."""
    with tempfile.TemporaryDirectory(prefix="crescendo-chaos-") as name:
        folder = Path(name)
        (folder / "samples").mkdir()
        with ExitStack() as stack:
            disk = stack.enter_context(small_disk(folder / "disk", DISK_BYTES))
            s3, mlflow = S3Server(folder / "s3"), MlflowServer(folder / "mlflow")
            for server in (s3, mlflow):
                stack.callback(server.kill)
                server.start()
            s3_link, mlflow_link = (stack.enter_context(slow_network(server.url)) for server in (s3, mlflow))
            os.environ.update(s3.client_environment())  # the nodes inherit it
            os.environ.update({"AWS_ENDPOINT_URL": s3_link.url, VARIABLE: str(folder / "samples")})
            os.environ.update(GCS_MEMORY)
            place = Place(folder, stack.enter_context(Nodes(2)), s3, mlflow, s3_link, mlflow_link, disk)
            place.write_data()
            yield place


def show_growth(growth: Growth) -> None:
    """Print each part's highest memory and handles over the rounds."""
    table = Table("of the largest process", "first round", "last round", "a round", "flat", title_justify="left")
    table.title = f"growth over {len(growth.rounds)} rounds"
    words = {True: "yes", False: "no", None: "too few rounds"}
    for name, trend in growth.trends().items():
        values = [f"{value:.0f}" for value in (trend.values[0], trend.values[-1])]
        table.add_row(name, *values, f"{trend.slope:+.1f}", words[trend.is_flat])
    wide_console().print(table)


def _show(verdicts: Sequence[Verdict]) -> None:
    table = Table(title="random kills over one run", title_justify="left")
    found = {verdict.name: verdict.table() for verdict in verdicts}
    if len(found) > 2:  # a soak: a line for each run, without the kinds, of which each has the same number
        names = [name for name in next(iter(found.values())) if not name.startswith("  ")]
        table.add_column("run")
        for name in names:
            table.add_column(name, justify="right")
        for run, values in found.items():
            table.add_row(run, *(values[name] for name in names))
    else:
        table.add_column("")
        rows: dict[str, list[str]] = {}
        for run, values in found.items():
            table.add_column(run, justify="right")
            for name, value in values.items():
                rows.setdefault(name, []).append(value)
        for name, row in rows.items():
            table.add_row(name, *row)
    wide_console().print(table)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # of which a shell's background job ignores the first
        signal.signal(number, signal.default_int_handler)  # servers, cluster and disk are to be ended
    run_main(main)

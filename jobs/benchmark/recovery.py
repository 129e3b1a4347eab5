"""Recovery time: seconds from the SIGKILL of a worker, or of a whole node, to the next training step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from datasets.checks import check_data
from infra.cluster.config import ClusterConfig
from infra.tracking.config import TrackingConfig
from jobs.benchmark.flags import check_at_least, read_flags
from jobs.benchmark.nodes import Nodes
from jobs.common.display import wide_console
from jobs.recipes.solar_cells import demo_scratch
from pipeline.config import TrainConfig
from pipeline.run.preflight import preflight
from pipeline.schedule.decisions import Stop
from pipeline.training_config import CheckpointConfig

GIVE_UP_S = 240.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    rounds: int = 3
    """Number of kills of a worker and of a node."""
    settle_s: float = 120.0
    """Seconds of training between a recovery and the next kill: standby processes come after one or two minutes."""
    standby: bool = True
    """Whether workers keep standby processes."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "rounds")
        check_at_least(self, 0, "settle_s")


class TrainingProcess:
    """A run on the cluster, seen from its controller."""

    def __init__(self, config: TrainConfig) -> None:
        from pipeline.run.launch import start_controller

        self.last_step_s = 0.0
        self.controller = start_controller(preflight(config))
        self.ends = self.controller.run()

    def wait_for_step(self, after_s: float, *, num_workers: int = 0) -> float:
        """Return when (Unix time) the first step came that a group started after `after_s` has taken.

        `last_step_s` is then when the group before it had taken its last one.
        """
        deadline = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline:
            status = self.controller.status()
            heard_s = time.time() - status.age_s
            stepped = status.started_s > after_s and heard_s > status.started_s
            if status.progress and stepped and num_workers in (0, status.progress.num_workers):
                return heard_s
            if status.started_s <= heard_s:
                self.last_step_s = heard_s
            time.sleep(0.05)
        raise RuntimeError(f"no training step for {GIVE_UP_S:.0f} s")


def main(argv: Sequence[str]) -> int:
    """Kill a worker, then a node, again and again, and add the node back."""
    options = read_flags(Options, argv, __doc__)
    base = demo_scratch()
    check_data(base.data, batch_sizes=[], worker_counts=[])  # before a cluster is started
    began_s = time.time()
    times: dict[str, list[float]] = {name: [] for name in ("start", "worker", "node", "grow", "hand over")}
    with Nodes(2) as nodes:
        run = TrainingProcess(_config(base, nodes.address, options.standby))
        times["start"].append(run.wait_for_step(began_s) - began_s)
        for _ in range(options.rounds):
            time.sleep(options.settle_s)
            times["worker"].append(_timed(run, lambda: nodes.train_workers(nodes.nodes[1])[0].kill()))
            time.sleep(options.settle_s)
            times["node"].append(_timed(run, lambda: nodes.kill(nodes.nodes[1])))
            nodes.add()
            back_s = time.time()
            stepped_s = run.wait_for_step(back_s, num_workers=2)
            times["grow"].append(stepped_s - back_s)
            times["hand over"].append(stepped_s - run.last_step_s)
        _stop(run)
    _show(times)
    return 0


def _timed(run: TrainingProcess, kill: Callable[[], None]) -> float:
    killed_s = time.time()
    kill()
    return run.wait_for_step(killed_s) - killed_s


def _stop(run: TrainingProcess) -> None:
    import ray

    run.controller.ask(Stop())
    run.ends.result(GIVE_UP_S)
    ray.shutdown()


def _config(config: TrainConfig, address: str, standby: bool) -> TrainConfig:
    folder = tempfile.mkdtemp(prefix="crescendo-benchmark-")
    return replace(
        config,
        name="recovery",
        storage=folder,
        stages=tuple(replace(stage, epochs=1000, image_size=64) for stage in config.stages[:1]),
        trainer=replace(config.trainer, log_every=1, eval_every_epochs=1000),
        checkpoint=CheckpointConfig(every_s=5),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics=False),
        cluster=ClusterConfig(address=address, num_workers=(1, 2), max_failures=-1, grow_check_s=5, standby=standby),
    )


def _show(times: dict[str, list[float]]) -> None:
    table = Table(title="seconds to the next training step", title_justify="left")
    for name in ("from", "times", "median", "min", "max"):
        table.add_column(name, justify="right")
    said = {
        "start": "submission",
        "worker": "a worker's SIGKILL",
        "node": "a node's SIGKILL (continues with one worker)",
        "grow": "the node's return (with two workers)",
        "hand over": "the last one of the smaller group",
    }
    for name, values in times.items():
        ordered = sorted(values)
        shown = (ordered[len(ordered) // 2], ordered[0], ordered[-1])
        table.add_row(said[name], str(len(values)), *(f"{value:.1f}" for value in shown))
    wide_console().print(table)

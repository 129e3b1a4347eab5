"""Time of a stage switch: seconds from a stage's end (evaluated, saved) to the next stage's first step."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.table import Table

from infra.tracking.config import TrackingConfig
from jobs.benchmark.flags import check_above_0, check_at_least, read_flags
from jobs.common.display import wide_console
from jobs.common.follow import Follower
from jobs.recipes.solar_cells import demo_scratch
from pipeline.config import TrainConfig
from pipeline.run.preflight import preflight


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    epochs: float = 0.25
    """Length of each stage, in epochs."""
    rounds: int = 2
    """Number of passes through the schedule of four stages; each has three switches and one back to small images."""

    def __post_init__(self) -> None:
        check_above_0(self, "epochs")
        check_at_least(self, 1, "rounds")


def main(argv: Sequence[str]) -> int:
    """Train the demo's stages, once in one worker group, once with another worker count in every stage."""
    options = read_flags(Options, argv, __doc__)
    table = Table(title="seconds from a stage's last step to the next one's first", title_justify="left")
    for name in ("switch", "switches", "median", "min", "max"):
        table.add_column(name, justify="right")
    for name, workers in (("in place", (2,)), ("new worker group", (2, 1))):
        gaps = _gaps(_config(options, workers))
        table.add_row(
            name, str(len(gaps)), *(f"{value:.2f}" for value in (statistics.median(gaps), min(gaps), max(gaps)))
        )
    wide_console().print(table)
    return 0


def _config(options: Options, workers: tuple[int, ...]) -> TrainConfig:
    config = demo_scratch()
    stages = tuple(
        replace(stage, epochs=options.epochs, num_workers=workers[index % len(workers)])
        for index, stage in enumerate(config.stages * options.rounds)
    )
    folder = tempfile.mkdtemp(prefix="crescendo-benchmark-")
    tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics=False)
    return replace(config, name=f"switch-{len(workers)}", stages=stages, storage=folder, tracking=tracking)


def _gaps(config: TrainConfig) -> list[float]:
    from pipeline.run.launch import start_controller

    ready = preflight(config)
    controller = start_controller(ready)
    status = Follower(wide_console(), ready.config, controller, controller.run()).follow()
    controller.kill()
    assert status.progress is not None
    results = status.progress.stage_results
    # The last row is a stage that ended the run; every other one has a stage after it.
    return [after["began_s"] - before["ended_s"] for before, after in pairwise(results) if after]

"""The latency table of a search: measured once on a worker, and kept in the search's storage."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.storage.base import MissingKeyError, Storage
from model.config import ModelConfig
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.search.space import choices, distributions, rows_of
from pipeline.sweep.strategy import random_point

if TYPE_CHECKING:
    from model.latency import LatencyTable

FILE = "latency.json"


@dataclass(frozen=True, slots=True)
class Timing:
    """Step times of candidates."""

    table: LatencyTable
    base_s: float
    """The base's step, in seconds: measured as a whole, and what the table says of it, by its making."""
    checks: list[tuple[float, float]]
    """Of random candidates: seconds that the table says, and measured as a whole."""

    @property
    def error(self) -> float:
        """Mean of |estimate - measured| / measured over the checks; NaN without any."""
        errors = [abs(estimated - measured) / measured for estimated, measured in self.checks]
        return sum(errors) / len(errors) if errors else float("nan")


def timing(
    config: TrainConfig, base: Sequence[Block], storage: Storage, *, num_classes: int, repeats: int, checks: int
) -> Timing:
    """Return the search's timing; measure it on a worker of the cluster if it isn't there yet."""
    from model.latency import LatencyTable

    try:
        values = json.loads(storage.read(FILE))
    except MissingKeyError:
        values = _measured(config, base, num_classes, repeats, checks)
        storage.write(FILE, json.dumps(values).encode())
    table = LatencyTable.from_json(values["table"])
    return Timing(table, table.estimate(base), [tuple(pair) for pair in values["checks"]])


def _measured(
    config: TrainConfig, base: Sequence[Block], num_classes: int, repeats: int, checks: int
) -> dict[str, Any]:
    import ray

    cluster, stage = config.cluster, config.stages[-1]
    shape = config.data.shape(stage.image_size)
    workers = max(config.worker_counts)
    batch = min(config.trainer.micro_batch_size or stage.batch_size, max(1, stage.batch_size // workers))
    space, source = distributions(base), random.Random("latency")
    points = [random_point(space, source) for _ in range(checks)]
    measure = ray.remote(num_cpus=cluster.reserved_cpus, num_gpus=cluster.gpus_per_worker)(_measure)
    work = {"batch_size": batch, "image_shape": shape, "num_classes": num_classes, "repeats": repeats}
    candidates = [rows_of(base, point) for point in points]
    threads, precision = cluster.threads_per_worker, config.trainer.precision
    return ray.get(measure.remote(config.model, choices(base), candidates, work, precision, threads))


def _measure(
    model: ModelConfig,
    every_choice: Sequence[tuple[str, int, int]],
    candidates: Sequence[tuple[Block, ...]],
    work_values: dict[str, Any],
    precision: str,
    threads: int,
) -> dict[str, Any]:
    """Measure, in a Ray task that has what a training worker has."""
    import torch

    from model.latency import Workload, measure_model, measure_table

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = precision == "bf16" or (precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())
    work = Workload(**work_values, device=device, bf16=bf16)
    table = measure_table(model, every_choice, work)
    measured = [measure_model(replace(model, rows=rows, fused_rows=()), work) for rows in candidates]
    checks = [(table.estimate(rows), seconds) for rows, seconds in zip(candidates, measured, strict=True)]
    return {"table": table.to_json(), "checks": checks}

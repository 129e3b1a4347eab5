"""From a checked run to a running controller: the edge where a plain class becomes an actor."""

from __future__ import annotations

from typing import Any

from infra.cluster import connect, start_actor
from pipeline.controller import StageController
from pipeline.preflight import Preflight
from pipeline.segment import SegmentRunner


def start_controller(ready: Preflight) -> Any:
    """Connect to the cluster and start the run's controller actor; `controller.run` then trains.

    Raises:
        ClusterError: no cluster, not enough room, or the run is going on already.
    """
    config, resume = ready.config, ready.resume_from
    workers = [stage.num_workers or config.cluster.num_workers for stage in config.stages]
    connect(config.cluster, num_workers=max(workers))
    first_stage = len(resume.stage_starts) - 1 if resume else 0
    return start_actor(
        StageController,
        config.stages,
        config.cluster.num_workers,
        SegmentRunner(config),
        first_stage,
        name=f"run-{config.name}",
    )

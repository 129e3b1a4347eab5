"""How many workers a group gets, as a Ray Train scaling policy: what the cluster has, in numbers that share the lanes.

Ray's own elastic policy may pick any number in the range, counts nodes from a view that is up to 20 s old, and restarts
a running group without a checkpoint when it could be larger. This one picks divisors of the lanes, asks each node
whether it is there before it counts it, and leaves it to the run's controller to end a group that could be larger:
with a checkpoint, at a decision point. Imported only where a worker group is started.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 1.0
"""A node whose raylet takes no connection within this time is not counted, in seconds."""
CALL_TIMEOUT_S = 5.0


def allowed_count(available: int, low: int, high: int, num_lanes: int) -> int:
    """Return the largest number of workers in [low, high] that is available and divides the lanes; 0 without one."""
    top = min(available, high)
    return next((count for count in range(top, low - 1, -1) if num_lanes % count == 0), 0)


class LanePolicy(ElasticScalingPolicy):
    """Ray's elastic policy with the numbers, the view of the cluster and the way to grow that a run needs."""

    def __init__(self, scaling_config: ScalingConfig, *, num_lanes: int, controller: Any) -> None:
        super().__init__(scaling_config)
        self.num_lanes, self.controller = num_lanes, controller
        self._known: dict[str, dict[str, float]] | None = None
        self._known_at = float("-inf")

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Tell the run's controller when the group could be larger; never cut a running group off."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            self.controller.can_grow.remote(worker_group_state.num_workers, decision.num_workers)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        available = super()._count_possible_workers(reserved_resources)
        config = self.scaling_config
        return allowed_count(available, config.min_workers, config.max_workers, self.num_lanes)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        now = time.monotonic()
        if now - self._known_at < self.GET_RESERVED_RESOURCES_INTERVAL_S:
            return self._known
        self._known_at = now
        try:
            call = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            reserved = ray.get(call, timeout=CALL_TIMEOUT_S)
            usable = usable_nodes(ray.nodes())
        except Exception as error:  # the cluster is changing under it: look again in a second
            log.warning("the cluster's resources are not known now: %s", error)
            reserved, usable = None, set()
        self._known = None if reserved is None else {node: reserved[node] for node in reserved if node in usable}
        return self._known


class ElasticTrainer(TorchTrainer):
    """A TorchTrainer with a scaling policy of its own."""

    policy: LanePolicy

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        return super()._initialize_and_run_controller(**arguments | {"scaling_policy": self.policy})


def usable_nodes(nodes: Iterable[dict[str, Any]]) -> set[str]:
    """Return the ids of the nodes that are alive, are not being drained, and answer."""
    draining = ray._private.state.state.get_draining_nodes()
    alive = [node for node in nodes if node["Alive"] and node["NodeID"] not in draining]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(_answers, alive))
    return {node["NodeID"] for node, answer in zip(alive, answers, strict=True) if answer}


def _answers(node: dict[str, Any]) -> bool:
    """Say whether a node's raylet takes a connection: Ray itself notices a dead one only by its health checks."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False

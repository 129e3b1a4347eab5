"""Ray Train's policies for group size and failures, by its private classes.

Ray's own elastic policy may pick any number in the range, counts nodes from a view that is up to 20 s old, and restarts
a running group without a checkpoint when it could be larger. `LanePolicy` picks divisors of the lanes, asks each node
whether it is there before it counts it, and leaves it to the run's controller to end a group that could be larger:
with a checkpoint, at a decision point. Imported only where a worker group is started or nodes are asked for.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from infra.cluster.config import REQUEST_EXPIRES_S, ClusterConfig
from infra.cluster.ray_private import check_attributes, check_names, draining_nodes, prestart_workers
from pipeline.run.controller_client import ControllerClient

log = logging.getLogger(__name__)

_SCALING = "ray.train.v2._internal.execution.scaling_policy:ElasticScalingPolicy"
_FIXED = "ray.train.v2._internal.execution.scaling_policy:FixedScalingPolicy"
_FAILURE = "ray.train.v2._internal.execution.failure_handling.default:DefaultFailurePolicy"
_TRAINER = "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer"
_CALLBACK = "ray.train.v2._internal.execution.callback:WorkerGroupCallback"
_COORDINATOR = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
NAMES: dict[str, tuple[str, ...] | None] = {
    f"{_SCALING}.__init__": ("self", "scaling_config"),
    f"{_SCALING}.after_controller_start": ("self", "train_run_context"),
    f"{_SCALING}.make_decision_for_non_running_worker_group": ("self",),
    f"{_SCALING}.make_decision_for_running_worker_group": ("self", "worker_group_state", "worker_group_status"),
    f"{_SCALING}._count_possible_workers": ("self", "reserved_resources"),
    f"{_SCALING}._get_reserved_resources": ("self",),
    f"{_SCALING}._autoscaling_coordinator": None,
    f"{_SCALING}.GET_RESERVED_RESOURCES_INTERVAL_S": None,
    f"{_FIXED}.after_controller_start": ("self", "train_run_context"),
    f"{_FIXED}._maybe_send_resource_request": ("self",),
    f"{_FIXED}._cancel_resource_request": ("self",),
    f"{_FAILURE}.__init__": ("self", "failure_config"),
    f"{_FAILURE}.make_decision": ("self", "training_failed_error"),
    f"{_FAILURE}._is_retryable_error": ("self", "training_failed_error"),
    f"{_CALLBACK}.after_worker_group_start": ("self", "worker_group"),
    f"{_CALLBACK}.after_worker_group_poll_status": ("self", "worker_group_status"),
    "ray.train.v2._internal.execution.worker_group:WorkerGroup.get_workers": ("self",),
    "ray.train.v2._internal.execution.controller:TrainController.__init__": (
        *("self", "train_fn_ref", "train_run_context", "scaling_policy", "failure_policy", "callbacks"),
        "validation_config",
    ),
    "ray.train.v2._internal.execution.controller:TrainController.run": ("self",),
    "ray.train.v2._internal.execution.controller:TrainController.get_result": ("self",),
    f"{_TRAINER}._initialize_and_run_controller": ("self", "controller_init_kwargs"),
    f"{_TRAINER}._create_default_callbacks": ("self",),
    "ray.train:ScalingConfig._resources_per_worker_not_none": None,
    f"{_COORDINATOR}:_AutoscalingCoordinatorActor.get_reserved_resources": ("self", "requester_id", "recompute"),
    f"{_COORDINATOR}:_AutoscalingCoordinatorActor.request_resources": (
        *("self", "requester_id", "resources", "expire_after_s", "request_remaining", "priority", "label_selectors"),
        *("subcluster_selector", "strategy"),
    ),
}
"""What is overridden or called here of Ray's private classes, with its parameters: see `check_names`."""
_FAILURE_COUNTS = ("_worker_group_failures", "_controller_failures", "_preemption_failures")

check_names(NAMES)
check_attributes(DefaultFailurePolicy(FailureConfig()), *_FAILURE_COUNTS)
check_attributes(ElasticScalingPolicy(ScalingConfig(num_workers=(1, 2))), "_requester_id", "scaling_config")

ANSWER_TIMEOUT_S = 1.0
"""A node whose raylet takes no connection within this time is not counted, in seconds."""
CALL_TIMEOUT_S = 5.0
DRAIN_CHECK_S = 1.0
"""Pause between two looks for nodes that are draining, in seconds."""
WAIT_S = 0.1
"""Pause between two decisions while there is no room for a group, in seconds."""
WARM_S = 20.0
"""What a new node gets to warm up spare workers before a group ends in order to grow onto it, in seconds."""


def allowed_count(available: int, low: int, high: int, num_lanes: int) -> int:
    """Return the largest number of workers in [low, high] that is available and divides the lanes; 0 without one."""
    top = min(available, high)
    return next((count for count in range(top, low - 1, -1) if num_lanes % count == 0), 0)


class LanePolicy(ElasticScalingPolicy):
    """Ray's elastic policy with the numbers, the view of the cluster and the way to grow that a run needs."""

    def __init__(
        self, scaling_config: ScalingConfig, *, num_lanes: int, controller: ControllerClient, standby: bool
    ) -> None:
        super().__init__(scaling_config)
        self.num_lanes, self.controller, self.standby = num_lanes, controller, standby
        self._asked: dict[str, float] = {}
        self._known: dict[str, dict[str, float]] | None = None
        self._known_at = float("-inf")

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for resources in the run's name, and so take over what a controller that was killed had asked for.

        Ray gives each start a new name, and would hold the dead one's share for three minutes.
        """
        super().after_controller_start(SimpleNamespace(run_id=train_run_context.run_config.name))

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Decide as Ray does; its loop asks again at once, and would keep a CPU busy until there is room."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(WAIT_S)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Tell the run's controller when the group could be larger; never cut a running group off."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        now = worker_group_state.num_workers
        if isinstance(decision, ResizeDecision) and decision.num_workers > now:
            here = {worker.metadata.node_id for worker in worker_group_state.workers}
            if not self.standby or self._is_warm(here, decision.num_workers - now):
                self.controller.on_capacity(now, decision.num_workers)
        return NoopDecision()

    def _is_warm(self, here: set[str], more: int) -> bool:
        """Say whether the nodes without workers had time to warm up spare ones; ask those that were not asked yet.

        So the group trains on while a new node imports what a worker needs, instead of waiting for it.
        """
        slots = {node: self._slots(resources) for node, resources in (self._known or {}).items()}
        new = {node for node, count in slots.items() if count and node not in here}
        try:
            for node in ray.nodes():
                if (name := node["NodeID"]) in new - self._asked.keys():
                    self._asked[name] = time.monotonic()
                    environment = self.controller.within(CALL_TIMEOUT_S).environment()
                    prestart_workers(node, environment, min(more, slots[name]))
        except Exception as error:  # it costs a slower start
            log.info("could not start a spare process: %s", error)
        return all(time.monotonic() - self._asked[name] > WARM_S for name in new & self._asked.keys())

    def _slots(self, resources: dict[str, float]) -> int:
        """Return how many workers have room in a node's resources."""
        each = self.scaling_config._resources_per_worker_not_none
        return int(min(resources.get(name, 0) // amount for name, amount in each.items() if amount))

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
            log.warning("cannot read the cluster's resources: %s", error)
            reserved, usable = None, set()
        self._known = None if reserved is None else {node: reserved[node] for node in reserved if node in usable}
        return self._known


class OwnClusterPolicy(FixedScalingPolicy):
    """Ray's policy for a fixed number of workers, without its requests for nodes: there is no one to hear them.

    The actor that Ray adds up such requests in takes 1.5 s of CPU time to start and then a hundredth of a CPU.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""


class ProgressPolicy(DefaultFailurePolicy):
    """Ray's failure policy counts failures over a whole run; this one starts counting again after progress.

    So a run of weeks survives any number of lost machines, and one that fails at the same place again and again ends.
    A worker that is lost while its group starts is a loss like any other; Ray would end the run if that happens between
    the group's set-up and its first step.
    """

    def __init__(self, failure_config: FailureConfig, *, reached: Callable[[], int]) -> None:
        super().__init__(failure_config)
        self.reached = reached
        self._best = -1

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Forget earlier failures if a later step than ever before was reported since, then decide as Ray does."""
        reached = self.reached()
        if reached > self._best:
            self._best = reached
            for count in _FAILURE_COUNTS:
                setattr(self, count, 0)
        return super().make_decision(training_failed_error)

    def _is_retryable_error(self, training_failed_error: Any) -> bool:
        cause = getattr(training_failed_error, "controller_failure", None)
        return isinstance(cause, ray.exceptions.RayActorError) or super()._is_retryable_error(training_failed_error)


class DrainWatch(WorkerGroupCallback):
    """Tells the run's controller when a node of the running group is draining.

    Ray's own watcher is an actor of its own, which imports beside the workers that are started; this one looks from
    where Ray Train looks after its workers anyway.
    """

    def __init__(self, controller: ControllerClient) -> None:
        self.controller = controller
        self._nodes: set[str] = set()
        self._looked_at = float("-inf")

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Note where its workers are."""
        self._nodes = {worker.metadata.node_id for worker in worker_group.get_workers()}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Look once in a while, and tell again and again: a group that still starts hears of nothing."""
        now = time.monotonic()
        if now - self._looked_at < DRAIN_CHECK_S:
            return
        self._looked_at = now
        try:
            leaving = self._nodes & draining_nodes()
        except Exception as error:  # the cluster's head is busy or away: look again in a second
            log.warning("cannot tell which nodes are draining: %s", error)
            return
        for node in leaving:
            self.controller.on_node_draining(node)


class GroupTrainer(DataParallelTrainer):
    """Ray Train's trainer with the policies above, and with its controller in the process that calls `fit`.

    That process is the run's controller, an actor with which a run is lost anyway. Ray's own trainer starts a further
    actor for each group, which imports Ray Train for seconds before it starts a worker.

    Two of Ray's callbacks, each of which starts an actor for each group too, are left out: that for Ray's datasets, of
    which there are none here, and the cleaner of placement groups. A group's reservation ends with its controller;
    `free_reservations` removes the rest.
    """

    def __init__(
        self,
        *arguments: Any,
        num_lanes: int,
        controller: ControllerClient,
        standby: bool,
        own_cluster: bool,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.num_lanes, self.controller, self.standby = num_lanes, controller, standby
        self.own_cluster = own_cluster

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        reached = partial(_reached, self.controller)
        arguments["failure_policy"] = ProgressPolicy(self.run_config.failure_config, reached=reached)
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = LanePolicy(
                self.scaling_config, num_lanes=self.num_lanes, controller=self.controller, standby=self.standby
            )
        elif self.own_cluster:
            arguments["scaling_policy"] = OwnClusterPolicy(self.scaling_config)
        controller = TrainController(**arguments)
        asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        unused = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in callbacks if not isinstance(callback, unused)] + [DrainWatch(self.controller)]


def _reached(controller: ControllerClient) -> int:
    """Return the highest cursor that a run's controller knows of."""
    try:
        return controller.within(CALL_TIMEOUT_S).reached()
    except Exception as error:  # then the run's controller is gone, and the run with it
        log.warning("the run's controller doesn't answer: %s", error)
        return -1


def usable_nodes(nodes: Iterable[dict[str, Any]]) -> set[str]:
    """Return the ids of the nodes that are alive, are not being drained, and answer."""
    draining = draining_nodes()
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


def request_workers(config: ClusterConfig, num_workers: int, *, requester: str) -> None:
    """Ask the cluster's autoscaler for nodes for so many more workers; the request expires by itself.

    Ray's coordinator adds it to what Ray Train asks for its running groups; the public `ray.autoscaler.sdk` would be
    overridden by it.
    """
    if num_workers < 1:
        return
    coordinator = get_or_create_autoscaling_coordinator()
    ray.get(
        coordinator.request_resources.remote(
            requester_id=requester,
            resources=[config.resources_per_worker] * num_workers,
            expire_after_s=REQUEST_EXPIRES_S,
            label_selectors=[config.labels] * num_workers,
        )
    )

"""The Ray cluster: connect to it or start one here, and make an object an actor."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from infra.cluster.config import REQUEST_EXPIRES_S, ClusterConfig, ClusterError

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "crescendo"
ACTOR_PREFIX = "run-"
"""What the name of a run's controller begins with."""
NOT_SHIPPED = [".git", ".venv", "/data", "/runs", "/.stack", "/tests", "/docs", "/.*_cache", "/.hypothesis"]
"""What of the repository workers don't need: patterns as in .gitignore."""
START_TRIES = 3
CONNECT_TIMEOUT_S = 10.0
"""A cluster that takes no connection within this time isn't there."""


_QUICK_RECOVERY = {
    # Ray Train reads these where `fit` is called, that is in the run's controller; see `start_actor`.
    # How often Ray Train looks after its workers; its default of 2 s is what a lost worker costs at least.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A group whose nodes are not there is given up after this long; Ray's 60 s are most of what a lost node costs.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more actor for each group; see `DrainWatch`
    # Of a cluster that is started here: a node is dead after 3 missed checks, a second apart; by default 15 to 50 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


def prepare_environment() -> None:
    """Set Ray's settings in this process, where its user has not: before Ray is imported."""
    for name, value in _QUICK_RECOVERY.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def connect(config: ClusterConfig, *, num_workers: int) -> str:
    """Connect to the cluster, or start one on this machine; ship the repo's root to the workers.

    Returns:
        A line for the user where `num_workers` have no room yet: an autoscaler may add nodes. Else an empty text.

    Raises:
        ClusterError: no cluster answers at the address, or this machine lacks the CPUs or GPUs for `num_workers`.
    """
    prepare_environment()
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"address": address, "namespace": NAMESPACE, "log_to_driver": False}
    if not in_submitted_job():  # which has its working_dir already
        arguments["runtime_env"] = {"working_dir": str(ROOT), "excludes": NOT_SHIPPED}
    if address == "local":
        arguments |= {"include_dashboard": False}
    if not ray.is_initialized():
        unreachable = ClusterError(
            f"cluster.address is {address!r}: no Ray cluster answers there; check `ray status`, "
            "or leave it empty to start one on this machine"
        )
        try:
            check_port(address, CONNECT_TIMEOUT_S)
        except OSError as error:
            raise unreachable from error
        try:
            start_ray(logging_level="ERROR", **arguments)
        except ConnectionError as error:
            raise unreachable from error
    lack = _lack(config, num_workers)
    if lack and address == "local":
        raise ClusterError(f"{lack}: lower cluster.num_workers, or train on a cluster (cluster.address)")
    return f"{lack}: the run waits until there are nodes for them" if lack else ""


def check_port(address: str, timeout_s: float) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray would look for minutes. Other forms are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout_s).close()


def free_reservations() -> int:
    """Remove the placement groups that dead actors of jobs that have ended left; return how many there were.

    Ray removes them itself, but not one that an actor has reserved while it was ended for the loss of its owner, as Ray
    Train's controller may: it would hold its CPUs for as long as the cluster lives.
    """
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    accessor = ray._private.state.state._connect_and_get_accessor()
    found = [PlacementGroupTableData.FromString(raw) for raw in accessor.get_placement_group_table()]
    gone = PlacementGroupTableData.PlacementGroupState.REMOVED
    left = [group for group in found if group.state != gone and group.creator_job_dead and not group.is_detached]
    left = [group for group in left if _is_dead(group.creator_actor_id.hex())]  # else it is an actor's that lives on
    for group in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(left)


def _is_dead(actor_id: str) -> bool:
    import ray

    return bool(actor_id) and ray._private.state.actors(actor_id).get("State", "DEAD") == "DEAD"


def in_submitted_job() -> bool:
    """Say whether this process is the driver of a job that was submitted to a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def start_ray(**arguments: Any) -> None:
    """Call `ray.init`; again where Ray's processes were not up within its 30 s, as on a machine that is very busy."""
    import ray

    for attempt in range(START_TRIES):
        try:
            ray.init(**arguments)
        except Exception as error:  # Ray has no class of its own for it
            if "timed out during startup" not in str(error) or attempt == START_TRIES - 1:
                raise
            ray.shutdown()
        else:
            return


def _lack(config: ClusterConfig, num_workers: int) -> str:
    import ray

    total = ray.cluster_resources()
    for resource, each in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker)):
        if num_workers * each > total.get(resource, 0):
            return f"{num_workers} workers x {each:g} {resource} are more than the cluster's {total.get(resource, 0):g}"
    return ""


def start_actor(cls: type, *args: Any, name: str, **kwargs: Any) -> Any:
    """Start an instance of a plain class as a named actor that answers calls while a long one runs.

    Raises:
        ClusterError: an actor of that name is running.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's own node: that one must live for the run in any case, any other may be lost. Not as a soft wish:
    # Ray 2.60 puts most actors of that kind, which ask for no CPU, somewhere else.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # In this namespace whatever the one of a process that was connected already: it is looked for there.
    options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": 16, "scheduling_strategy": here}
    # A cluster that was started elsewhere doesn't know this process's environment.
    train = {key: os.environ[key] for key in _QUICK_RECOVERY if key.startswith("RAY_TRAIN_") and key in os.environ}
    options["runtime_env"] = {"env_vars": train}
    try:
        actor = ray.remote(cls).options(**options).remote(*args, **kwargs)
        ray.get(actor.__ray_ready__.remote())
    except ValueError as error:
        raise ClusterError(
            f"{name} is running on this cluster already: wait for it, or give this run another name"
        ) from error
    return actor


def request_workers(config: ClusterConfig, num_workers: int, *, requester: str) -> None:
    """Ask the cluster's autoscaler for nodes for so many more workers; the request expires by itself.

    Ray's coordinator adds it to what Ray Train asks for its running groups.
    """
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    if num_workers < 1:
        return
    bundle = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})
    coordinator = get_or_create_autoscaling_coordinator()
    ray.get(
        coordinator.request_resources.remote(
            requester_id=requester, resources=[bundle] * num_workers, expire_after_s=REQUEST_EXPIRES_S
        )
    )

"""The Ray cluster: connect to it or start one here, and make an object an actor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "crescendo"
START_TRIES = 3
"""A local Ray that is not up after Ray's 30 s, as on a machine that is very busy, is started again."""


class ClusterError(ValueError):
    """The cluster can't be reached, or can't give what the run asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where a run trains, and what each of its workers gets."""

    address: str = ""
    """Address of a Ray cluster (`auto`, `host:port`, `ray://host:port`). Empty: RAY_ADDRESS, else a local one."""
    num_workers: int = 2
    """Training workers (DDP ranks) of a stage that doesn't name its own number."""
    cpus_per_worker: float = 1
    """CPUs that each worker reserves, for its training thread and its loader processes."""
    gpus_per_worker: float = 0
    """GPUs that each worker reserves; 0 trains on CPU."""
    max_failures: int = 3
    """Worker or node failures that a run recovers from before it gives up. -1: any number."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"cluster.num_workers is {self.num_workers}: a run needs at least 1 worker")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ValueError("cluster.cpus_per_worker must be above 0 and cluster.gpus_per_worker at least 0")
        if self.max_failures < -1:
            raise ValueError(f"cluster.max_failures is {self.max_failures}: use -1 for any number, or 0 and more")


def connect(config: ClusterConfig, *, num_workers: int) -> None:
    """Connect to the cluster, or start one on this machine; ship the repo's root to the workers.

    Raises:
        ClusterError: no cluster answers at the address, or it lacks the CPUs or GPUs for `num_workers`.
    """
    # Workers learn that a report was taken at the controller's next poll; Ray's default of 2 s makes each report wait.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"address": address, "namespace": NAMESPACE, "log_to_driver": False}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has its working_dir already
        arguments["runtime_env"] = {"working_dir": str(ROOT), "excludes": [".git", ".venv", "tests", "docs"]}
    if address == "local":
        arguments |= {"include_dashboard": False}
    if not ray.is_initialized():
        _init(address, arguments)
    _check_room(config, num_workers)


def _init(address: str, arguments: dict[str, Any]) -> None:
    import ray

    for attempt in range(START_TRIES):
        try:
            ray.init(logging_level="ERROR", **arguments)
        except ConnectionError as error:
            raise ClusterError(
                f"cluster.address is {address!r}: no Ray cluster answers there; check `ray status`, "
                "or leave it empty to start one on this machine"
            ) from error
        except Exception as error:  # Ray has no class of its own for a start that took more than its 30 s
            if "timed out during startup" not in str(error) or attempt == START_TRIES - 1:
                raise
            ray.shutdown()
        else:
            return


def _check_room(config: ClusterConfig, num_workers: int) -> None:
    import ray

    total = ray.cluster_resources()
    for resource, each in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker)):
        if num_workers * each > total.get(resource, 0):
            raise ClusterError(
                f"{num_workers} workers x {each:g} {resource} are more than the cluster's {total.get(resource, 0):g}: "
                f"lower cluster.num_workers, or add nodes"
            )


def start_actor(cls: type, *args: Any, name: str, **kwargs: Any) -> Any:
    """Start an instance of a plain class as a named actor that answers calls while a long one runs.

    Raises:
        ClusterError: an actor of that name is running.
    """
    import ray

    options = {"name": name, "num_cpus": 0, "max_concurrency": 16}
    try:
        actor = ray.remote(cls).options(**options).remote(*args, **kwargs)
        ray.get(actor.__ray_ready__.remote())
    except ValueError as error:
        raise ClusterError(
            f"{name} is running on this cluster already: wait for it, or give this run another name"
        ) from error
    return actor

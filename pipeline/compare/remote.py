"""Calls a function in a process with the resources of a training worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.cluster.config import ClusterConfig
from infra.cluster.connect import connect
from infra.redact import last_line


def on_worker(cluster: ClusterConfig, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on the cluster, with a worker's CPUs and GPUs.

    Raises:
        RuntimeError: it failed there, or its process did; one line that begins with `what`.
    """
    import ray

    connect(cluster, num_workers=1)
    # A process of its own: what an earlier call kept would count as this one's memory. A failure is told, not repeated.
    alone = {"max_calls": 1, "max_retries": 0}
    remote = ray.remote(num_cpus=cluster.reserved_cpus, num_gpus=cluster.gpus_per_worker, **alone)(function)
    try:
        return ray.get(remote.remote(*arguments))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"{what} failed on its worker: {type(cause).__name__}: {last_line(error)}") from error

"""The runs that are on: their controllers, found from any process that reaches their Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.cluster import ACTOR_PREFIX, NAMESPACE, ClusterError

ANSWER_TIMEOUT_S = 10.0
"""A controller that gives no answer within this time is passed over."""


def cluster_addresses(address: str = "") -> list[str]:
    """Return the address that is asked for, else RAY_ADDRESS, else those of all Ray clusters on this machine.

    A cluster that `jobs.train` started itself is among those: it ends with its run.

    Raises:
        ClusterError: there is none.
    """
    if address or os.environ.get("RAY_ADDRESS"):
        return [address or os.environ["RAY_ADDRESS"]]
    from ray._private.services import find_gcs_addresses

    found = sorted(find_gcs_addresses())
    if not found:
        raise ClusterError("no Ray cluster runs on this machine: give --address HOST:PORT, or set RAY_ADDRESS")
    return found


@contextmanager
def attached(address: str) -> Iterator[None]:
    """Be connected to a running cluster.

    Raises:
        ClusterError: no cluster answers there, or it refuses the token.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        cure = "set RAY_AUTH_MODE and RAY_AUTH_TOKEN as the cluster has them" if "auth" in said.lower() else "check it"
        raise ClusterError(f"no Ray cluster answers at {address} ({said}): {cure}") from error
    try:
        yield
    finally:
        ray.shutdown()


def controllers() -> dict[str, Any]:
    """Return the handles of the controllers on the cluster that this process is attached to, by their runs' names."""
    import ray
    from ray.util import list_named_actors

    found = {}
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(ACTOR_PREFIX):
            try:
                found[actor["name"].removeprefix(ACTOR_PREFIX)] = ray.get_actor(actor["name"], NAMESPACE)
            except ValueError:  # it has ended meanwhile
                continue
    return dict(sorted(found.items()))


def answer(controller: Any, method: str, *args: Any) -> Any:
    """Return what a controller answers, or None when it has ended or doesn't answer."""
    import ray

    try:
        return ray.get(getattr(controller, method).remote(*args), timeout=ANSWER_TIMEOUT_S)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None

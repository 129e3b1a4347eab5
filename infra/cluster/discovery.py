"""Finds the controllers of active runs, from any process that reaches their Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from infra.cluster.config import ClusterError
from infra.cluster.connect import ACTOR_PREFIX, NAMESPACE, check_port, join

Seen = TypeVar("Seen")

CONNECT_TIMEOUT_S = 2.0
"""A cluster that takes no connection within this time is passed over."""


class NoClusterError(ClusterError):
    """No Ray cluster runs on this machine."""


def cluster_addresses(address: str) -> list[str]:
    """Return the address that is asked for, else RAY_ADDRESS, else those of all Ray clusters on this machine.

    A cluster that `jobs.train` started itself is among those: it ends with its run.

    Raises:
        NoClusterError: there is none.
    """
    if not is_local(address):
        return [address or os.environ["RAY_ADDRESS"]]
    from infra.cluster.ray_private import local_cluster_addresses

    found = local_cluster_addresses()
    if not found:
        raise NoClusterError("no Ray cluster runs on this machine: give --address HOST:PORT, or set RAY_ADDRESS")
    return found


@contextmanager
def attached(address: str, *, found_here: bool) -> Iterator[None]:
    """Be connected to a running cluster.

    Ray gives a cluster that it starts on a machine a token, in the user's home, but shows it to a cluster only if it
    found that one itself. So for one that was found on this machine, the token is shown.

    Raises:
        ClusterError: no cluster answers there, or it refuses the token.
    """
    import ray

    from infra.cluster.ray_private import use_token_of_user

    logging.getLogger("ray").setLevel(logging.ERROR)
    if found_here:
        use_token_of_user()
    join(address, CONNECT_TIMEOUT_S, name="--address")
    try:
        yield
    finally:
        ray.shutdown()


def visit(address: str, look: Callable[[], Seen]) -> dict[str, Seen]:
    """Return by address what `look` sees on the cluster that is asked for, or else on all on this machine.

    Of several, one that can't be reached is passed over.

    Raises:
        NoClusterError: there is none on this machine, and no address.
        ClusterError: the only one can't be reached.
    """
    addresses, seen = cluster_addresses(address), dict[str, Seen]()
    for one in addresses:
        try:
            with attached(one, found_here=is_local(address)):
                seen[one] = look()
        except ClusterError:
            if len(addresses) == 1:
                raise
    return seen


def is_local(address: str) -> bool:
    """Say whether no address is given: then clusters are looked for on this machine."""
    return not address and not os.environ.get("RAY_ADDRESS")


def is_up(address: str) -> bool:
    """Say whether a cluster still takes connections: asking Ray about one that is gone takes a minute."""
    try:
        check_port(address, CONNECT_TIMEOUT_S)
    except OSError:
        return False
    return True


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

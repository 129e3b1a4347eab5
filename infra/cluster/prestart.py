"""Spare worker processes: started and warmed up before they are needed, so that a lost worker is replaced in seconds.

A new process of Ray spends most of its first seconds importing PyTorch and what is around it. Ray keeps idle processes
and gives an actor one whose job and runtime environment fit, but it starts them only when they are asked for. Here a
worker asks its own node for another process like itself. Ray runs a function in it as soon as it is up (the setup hook
of its runtime environment), and keeps it until an actor takes it, or the job ends.
"""

from __future__ import annotations

import importlib
import logging
import threading

log = logging.getLogger(__name__)


def start_standby(delay_s: float) -> None:
    """Ask this node, in `delay_s` seconds and in a thread, for a spare process like the calling worker.

    A group that ends earlier, as in a short run, costs nothing for it. It is only speed that is at stake: where the
    node doesn't answer, nothing happens.
    """
    timer = threading.Timer(delay_s, _start_quietly)
    timer.daemon = True
    timer.start()


def import_all(*modules: str) -> None:
    """Import modules in a new process; one that can't be imported is for its user to complain about."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            log.debug("%s is not imported ahead: %s", module, error)


def current_environment() -> str:
    """Return the calling worker's runtime environment, as Ray compares it with that of a spare process."""
    import ray

    return str(ray.get_runtime_context().get_runtime_env_string())


def _start_quietly() -> None:
    import ray

    from infra.cluster.ray_private import prestart_workers

    try:
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        prestart_workers(node, current_environment())
    except Exception as error:
        log.info("could not start a spare process: %s", error)

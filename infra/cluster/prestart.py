"""Spare worker processes: started and warmed up before they are needed, so that a lost worker is replaced in seconds.

A new process of Ray spends most of its first seconds importing PyTorch and what is around it. Ray keeps idle processes
and gives an actor one whose job and runtime environment fit, but it starts them only when they are asked for. Here a
worker asks its own node for another process like itself, once that has a CPU to spare for it. Ray runs a function in it
as soon as it is up (the setup hook of its runtime environment), and keeps it until an actor takes it, or the job ends.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
IDLE_CPUS = 0.7
"""CPUs of a node that must be idle for a spare process to be started."""
LOOK_S = 10.0
"""For how long they must be, in seconds."""


def start_standby(delay_s: float, *, idle_cpus: Callable[[float], float] | None = None) -> None:
    """Ask this node for a spare process like the calling worker, in a thread: after `delay_s` seconds, when CPUs idle.

    A spare process imports for ten seconds or more. Where training leaves no CPU idle, as where workers fill a node, it
    would cost more than it saves, and there is none. A group that ends earlier, as in a short run, costs nothing for
    it. It is only speed that is at stake: where the node doesn't answer, nothing happens.

    Args:
        delay_s: seconds before the CPUs are looked at.
        idle_cpus: returns how many CPUs were idle for so many seconds from now; None: this machine's.
    """
    arguments = (delay_s, idle_cpus or machines_idle_cpus)
    threading.Thread(target=_start_when_idle, args=arguments, name="standby", daemon=True).start()


def machines_idle_cpus(seconds: float) -> float:
    """Return how many CPUs are idle on average from now on, after so many seconds: of a container's limit, if any.

    A container sees all CPUs of its machine, but may use no more than its limit (cgroup v2).
    """
    limit, used = _container_cpus(CGROUP), _container_seconds(CGROUP)
    idle = float(psutil.cpu_times_percent(seconds).idle) / 100 * (psutil.cpu_count() or 1)
    return idle if limit is None else min(idle, limit - (_container_seconds(CGROUP) - used) / seconds)


def _container_cpus(group: Path) -> float | None:
    """Return how many CPUs a container may use; None: there is no limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _container_seconds(group: Path) -> float:
    """Return the CPU seconds that a container has used."""
    try:
        return int((group / "cpu.stat").read_text().partition("usage_usec")[2].split()[0]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def import_all(*modules: str) -> None:
    """Import modules in a new process; one that can't be imported is for its user to complain about."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            log.debug("%s is not imported ahead: %s", module, error)


def is_spare() -> bool:
    """Say whether the calling process waits for an actor."""
    import ray

    return ray.get_runtime_context().get_actor_id() is None


def current_environment() -> str:
    """Return the calling worker's runtime environment, as Ray compares it with that of a spare process."""
    import ray

    return str(ray.get_runtime_context().get_runtime_env_string())


def _start_when_idle(delay_s: float, idle_cpus: Callable[[float], float]) -> None:
    import ray

    from infra.cluster.ray_private import prestart_workers

    time.sleep(delay_s)
    while idle_cpus(LOOK_S) < IDLE_CPUS:
        pass
    try:
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        prestart_workers(node, current_environment())
    except Exception as error:
        log.info("could not start a spare process: %s", error)

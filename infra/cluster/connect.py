"""Connects to a Ray cluster or starts one here, and turns an object into an actor."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from infra.cluster.code_package import packed_code
from infra.cluster.config import ClusterConfig, ClusterError, RayVersionError

NAMESPACE = "crescendo"
ACTOR_PREFIX = "run-"
"""What the name of a run's controller begins with."""
IN_ORDER = "in-order"
"""The concurrency group of an actor whose calls are answered one after another, as they came; calls outside of it are
answered at the same time, in any order."""
OWN_LABEL = "crescendo/own-cluster"
"""Label of the node of a cluster that a command started for itself."""
START_TRIES = 3
CONNECT_TIMEOUT_S = 10.0
"""A cluster that takes no connection within this time isn't there."""
CONNECT_TRIES = 2
"""Ray itself tries 20 times, also where it is refused for a wrong token, and each may take half a minute."""
_OTHER_TOKEN = "RAY_AUTH_TOKEN_PATH names a file with it; `ray get-auth-token` on the cluster's head prints it"

_QUICK_RECOVERY = {
    # Ray Train reads these where `fit` is called, that is in the run's controller; see `start_actor`.
    # How often Ray Train looks after its workers: what a lost worker costs at least. Each look takes CPU time in the
    # controller and in every worker; Ray's default is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A group whose nodes are not there is given up after this long; Ray's 60 s are most of what a lost node costs.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more actor for each group; see `DrainWatch`
    # Of a cluster that is started here: no processes ahead for a first job's tasks, of which a run has none.
    "RAY_prestart_worker_first_driver": "false",
    # A node is dead after 3 missed checks, a second apart; by default 15 to 50 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}

_is_own = False


def prepare_environment() -> None:
    """Set Ray's settings in this process, where its user has not: before Ray is imported."""
    for name, value in _QUICK_RECOVERY.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def connect(config: ClusterConfig, *, num_workers: int) -> str:
    """Connect to the cluster, or start one on this machine; ship the project's code to the workers.

    Returns:
        A line for the user where `num_workers` have no room yet: an autoscaler may add nodes. Else an empty text.

    Raises:
        ClusterError: no cluster answers at the address or it refuses the token, it is another command's own, none could
            be started here, or this machine lacks the CPUs or GPUs for `num_workers`.
    """
    prepare_environment()
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    name = "cluster.address" if config.address else "RAY_ADDRESS"
    if not ray.is_initialized():
        # A submitted job has its working_dir already.
        with own_sigterm(), nullcontext() if in_submitted_job() else packed_code() as code:
            shipped = {"runtime_env": {"working_dir": code}} if code else {}
            if address == "local":
                start_ray(namespace=NAMESPACE, labels={OWN_LABEL: "true"}, **shipped)
            else:
                join(address, CONNECT_TIMEOUT_S, name=name, **shipped)
                _check_shared(f"{name} is {address!r}")
    lack = _lack(config, num_workers)
    if lack and address == "local":
        raise ClusterError(f"{lack}: lower cluster.num_workers, or train on a cluster (cluster.address)")
    return f"{lack}: the run waits until there are nodes for them" if lack else ""


def _check_shared(place: str) -> None:
    """Refuse to train on another command's own cluster: it ends with that one, and counts no one's requests."""
    import ray

    if any(OWN_LABEL in node["Labels"] for node in ray.nodes()):
        ray.shutdown()
        raise ClusterError(
            f"{place}: the Ray cluster there was started by another command for itself and ends with it; start one "
            "that stays (`ray start --head`), or give no address for one of this command's own"
        )


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep a handler of SIGTERM that this process has set: `ray.init` replaces it by one that exits with its number."""
    own = signal.getsignal(signal.SIGTERM)
    if not callable(own) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # by that handler, while Ray starts
            own(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, own)


def join(address: str, timeout_s: float, *, name: str, **arguments: Any) -> None:
    """Connect this process to a cluster that is running.

    Args:
        address: of the cluster, as `ray.init` takes it.
        timeout_s: a port that takes no connection for this long is none of a cluster.
        name: what the address is called in messages, as `--address`.
        arguments: further ones of `ray.init`.

    Raises:
        ClusterError: nothing answers there, or it refuses the token.
        RayVersionError: the cluster runs another release of Ray or Python.
    """
    import ray

    from infra.cluster.ray_private import connect_tries

    global _is_own
    try:
        check_port(address, timeout_s)
        with connect_tries(CONNECT_TRIES):
            _is_own = False
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **arguments)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise _why_not(f"{name} is {address!r}", error) from error


def _why_not(address: str, error: Exception) -> ClusterError:
    """Tell from what Ray says why a process can't connect."""
    said = f"{error} {error.__cause__}"
    if "token" in said.lower() or "unauthenticated" in said.lower():
        return ClusterError(f"{address}: the Ray cluster there {token_problem()}")
    if "ersion mismatch" in said:
        return RayVersionError(f"{address}: {' '.join(str(error).split())}")
    return ClusterError(
        f"{address}: no Ray cluster answers there; check `ray status`, or leave it empty for one on this machine"
    )


def token_problem() -> str:
    """Say why a cluster refuses this process, and the cure: to be read after `the cluster`."""
    token = _own_token()
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() != "token":
        where = f"{token} is sent then" if token else _OTHER_TOKEN
        return f"requires a token, and RAY_AUTH_MODE is {mode or 'not set'}: export RAY_AUTH_MODE=token ({where})"
    return (
        f"does not accept {token}: {_OTHER_TOKEN}" if token else f"requires a token, and there is none: {_OTHER_TOKEN}"
    )


def _own_token() -> str:
    """Return where Ray takes this process's token from, in words; empty without one."""
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(variable):
            return f"the token of {variable}"
    in_home = Path.home() / ".ray" / "auth_token"
    return f"the token in {in_home}" if in_home.exists() else ""


def check_port(address: str, timeout_s: float) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray would look for minutes. Other forms are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout_s).close()


def free_reservations() -> int:
    """Remove the placement groups that dead actors of jobs that have ended left; return how many there were.

    Ray removes them itself, but not one that an actor has reserved while it was ended, as a run's controller may: it
    would hold its CPUs for as long as the cluster lives.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    from infra.cluster.ray_private import abandoned_reservations

    left = abandoned_reservations()
    for group in left:
        remove_placement_group(PlacementGroup(group))
    return len(left)


def in_submitted_job() -> bool:
    """Say whether this process is the driver of a job that was submitted to a cluster."""
    from infra.cluster.ray_private import JOB_VARIABLE

    return JOB_VARIABLE in os.environ


def start_ray(**arguments: Any) -> None:
    """Start a cluster on this machine for this process alone, without a dashboard and without logs on its terminal.

    It is started again where its processes were not up in time, as on a machine that is busy.

    Raises:
        ClusterError: it does not start.
    """
    import ray

    from infra.cluster.ray_private import few_processes

    global _is_own
    arguments |= {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    for left in reversed(range(START_TRIES)):
        try:
            with few_processes():
                ray.init(address="local", **arguments)
        except (TypeError, ValueError):  # wrong arguments
            raise
        except Exception as error:  # Ray has no class of its own for it
            ray.shutdown()
            if not left:
                said = str(error).strip().partition("\n")[0]
                raise ClusterError(
                    f"Ray did not start on this machine in {START_TRIES} tries ({said}): the machine is too busy, or "
                    "short of memory or disk; end other work on it and try again, or train on a cluster "
                    "(cluster.address). Ray's logs: /tmp/ray/session_latest/logs"
                ) from error
        else:
            _is_own = True
            return


def has_own_cluster() -> bool:
    """Say whether this process has started the cluster that it uses, which no autoscaler and no one else looks at."""
    return _is_own


def resources_of_nodes(config: ClusterConfig) -> list[Mapping[str, float]]:
    """Return what each node that is up and that workers may be placed on has, as Ray names it: `CPU`, `GPU`, ..."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"] and has_labels(node["Labels"], config.labels)]


def _lack(config: ClusterConfig, num_workers: int) -> str:
    nodes = resources_of_nodes(config)
    where = f" on nodes with {' and '.join(f'{key}={value}' for key, value in config.labels.items())}"
    for resource, each in config.resources_per_worker.items():
        total = sum(node.get(resource, 0) for node in nodes)
        if num_workers * each > total:
            said = f"{num_workers} workers x {each:g} {resource} are more than the cluster's {total:g}"
            return said + (where if config.labels else "")
    return ""


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Say whether a node has labels, as Ray's label selectors have it: `value`, `!value`, `in(a,b)`, `!in(a,b)`."""
    return all(_matches(labels.get(key), value) for key, value in wanted.items())


def _matches(label: str | None, wanted: str) -> bool:
    if wanted.startswith("!"):
        return not _matches(label, wanted[1:])
    if wanted.startswith("in(") and wanted.endswith(")"):
        return label in wanted[3:-1].split(",")
    return label == wanted


def start_actor(cls: type, *args: Any, name: str, **kwargs: Any) -> Any:
    """Start an instance of a plain class as a named actor that answers calls while a long one runs.

    Calls of the concurrency group `IN_ORDER` are answered one after another.

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
        actor = ray.remote(concurrency_groups={IN_ORDER: 1})(cls).options(**options).remote(*args, **kwargs)
        ray.get(actor.__ray_ready__.remote())
    except ValueError as error:
        raise ClusterError(
            f"{name} is running on this cluster already: wait for it, or give this run another name"
        ) from error
    return actor

"""What is used of Ray beyond its public API, but for Ray Train's policies (`pipeline/run/ray_policies.py`).

Ray may change such names in any release. So importing this module checks Ray's release, and that each name is there
with the parameters that are used; all other modules use Ray's public API only (`tests/infra/cluster` checks it).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from typing import Any

import ray

from infra.cluster.config import RayVersionError

RELEASE = "2.60"
CURE = f"run `make setup`, or `pip install 'ray[default,train,tune]=={RELEASE}.*'` on every node"

NAMES: dict[str, tuple[str, ...] | None] = {
    "ray._private.authentication.authentication_token_setup:maybe_enable_token_auth_if_token_available": (
        "warn_if_disabled",
    ),
    "ray._private.grpc_utils:init_grpc_channel": ("address", "options", "asynchronous", "credentials"),
    "ray._private.node:Node.get_gcs_client": ("self",),
    "ray._private.node:Node.start_api_server": ("self", "include_dashboard", "raise_on_failure"),
    "ray._private.node:Node.start_log_monitor": ("self",),
    "ray._private.node:Node.start_monitor": ("self",),
    "ray._private.ray_constants:DASHBOARD_ADDRESS": None,
    "ray._private.ray_constants:KV_NAMESPACE_DASHBOARD": None,
    "ray._private.ray_constants:NUM_REDIS_GET_RETRIES": None,
    "ray._private.ray_constants:WORKER_PROCESS_SETUP_HOOK_ENV_VAR": None,
    "ray._private.runtime_env.constants:RAY_JOB_CONFIG_JSON_ENV_VAR": None,
    "ray._private.services:find_gcs_addresses": (),
    "ray._private.state:GlobalState._connect_and_get_accessor": ("self",),
    "ray._private.state:GlobalState.get_draining_nodes": ("self",),
    "ray._private.state:actors": ("actor_id", "job_id", "actor_state_name"),
    "ray._private.state:state": None,
    "ray._raylet:GcsClient": None,
    "ray._raylet:GlobalStateAccessor.get_placement_group_table": ("self",),
    "ray._raylet:InnerGcsClient.drain_node": (
        *("self", "node_id", "reason", "reason_message", "deadline_timestamp_ms", "timeout"),
    ),
    "ray._raylet:InnerGcsClient.get_all_node_info": ("self", "timeout", "node_selectors", "state_filter"),
    "ray.core.generated.autoscaler_pb2:DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION": None,
    "ray.core.generated.common_pb2:Language.PYTHON": None,
    "ray.core.generated.gcs_pb2:GcsNodeInfo.ALIVE": None,
    "ray.core.generated.gcs_pb2:GcsNodeInfo.NODE_MANAGER_ADDRESS_FIELD_NUMBER": None,
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.CREATOR_ACTOR_ID_FIELD_NUMBER": None,
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.CREATOR_JOB_DEAD_FIELD_NUMBER": None,
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.IS_DETACHED_FIELD_NUMBER": None,
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.REMOVED": None,
    "ray.core.generated.node_manager_pb2:PrestartWorkersRequest.KEEP_ALIVE_DURATION_SECS_FIELD_NUMBER": None,
    "ray.core.generated.node_manager_pb2:PrestartWorkersRequest.RUNTIME_ENV_INFO_FIELD_NUMBER": None,
    "ray.core.generated.node_manager_pb2_grpc:NodeManagerServiceStub": ("channel",),
}
"""Each name that is used, as `module:name`, and its parameters (None: it is no Python function)."""


def check_release() -> None:
    """Check that this process has the release of Ray that the names belong to.

    Raises:
        RayVersionError: it is older or newer.
    """
    if ray.__version__.split(".")[:2] != RELEASE.split("."):
        raise RayVersionError(f"Ray {ray.__version__} is installed, but only {RELEASE} is supported: {CURE}")


def check_names(names: Mapping[str, tuple[str, ...] | None]) -> None:
    """Check that names of Ray exist and take the given parameters: see `NAMES`.

    Raises:
        RayVersionError: one is missing or takes others; all names after it are not looked at.
    """
    for name, expected in names.items():
        module, _, path = name.partition(":")
        try:
            found = attrgetter(path)(import_module(module))
            parameters = None if expected is None else _parameters(found)
        except (ImportError, AttributeError) as error:
            raise RayVersionError(f"Ray {ray.__version__} has no {name}, which is used here: {CURE}") from error
        if parameters != expected:
            raise RayVersionError(
                f"{name} of Ray {ray.__version__} takes {parameters}, but {expected} is expected: {CURE}"
            )


def _parameters(function: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of a function's parameters, but for the one that Ray gives the methods of its actor classes."""
    return tuple(name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx")


def check_attributes(owner: object, *names: str) -> None:
    """Check that an object of Ray has attributes that its class doesn't show.

    Raises:
        RayVersionError: it lacks one.
    """
    for name in names:
        if not hasattr(owner, name):
            raise RayVersionError(
                f"Ray {ray.__version__} has no {type(owner).__name__}.{name}, which is used here: {CURE}"
            )


check_release()
check_names(NAMES)

# Only now: a name that is missing has been told by `check_names`.
from ray._private import ray_constants, services, state  # noqa: E402
from ray._private.authentication import authentication_token_setup  # noqa: E402
from ray._private.grpc_utils import init_grpc_channel  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR  # noqa: E402
from ray.core.generated import autoscaler_pb2, common_pb2, gcs_pb2, node_manager_pb2  # noqa: E402
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub  # noqa: E402

HOOK_VARIABLE = ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
"""Environment variable with the function that a new process runs first, as `module.function`. The public field
`worker_process_setup_hook` is for a whole job only."""
JOB_VARIABLE = RAY_JOB_CONFIG_JSON_ENV_VAR
"""Environment variable that only the driver of a submitted job has."""
CHATTY_LOGGERS = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    *("ray._private.runtime_env.packaging", "ray._private.runtime_env.working_dir"),
)
"""Loggers that report each step of submitting a job."""
WORKER_MODULES = (
    *("ray.train.v2._internal.execution.worker_group.worker", "ray.train.v2.torch.train_loop_utils"),
    "ray.train.torch.config",
)
"""What a process imports when it becomes a worker of Ray Train."""
_KEEP_S = 10 * 365 * 86400
_CALL_TIMEOUT_S = 10.0


def local_cluster_addresses() -> list[str]:
    """Return the addresses of all clusters whose head runs on this machine."""
    return sorted(services.find_gcs_addresses())


def use_token_of_user() -> None:
    """Show the token in the user's home to clusters, as Ray does for one that it starts or finds itself."""
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextmanager
def connect_tries(tries: int) -> Iterator[None]:
    """Have `ray.init` try a cluster so often; by default 20 times, also after a wrong token, half a minute each."""
    before = ray_constants.NUM_REDIS_GET_RETRIES
    ray_constants.NUM_REDIS_GET_RETRIES = tries
    try:
        yield
    finally:
        ray_constants.NUM_REDIS_GET_RETRIES = before


@contextmanager
def few_processes() -> Iterator[None]:
    """Have `ray.init` start a cluster without what serves others: dashboard, publisher of logs, autoscaler's monitor.

    One driver's own cluster has no use for them. Each starts an interpreter, and polls for as long as training lasts.
    """
    instead = {"start_api_server": _name_no_server, "start_log_monitor": _nothing, "start_monitor": _nothing}
    before = {name: getattr(Node, name) for name in instead}
    for name, start in instead.items():
        setattr(Node, name, start)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def _nothing(node: Node) -> None:
    """Take the place of a method that starts a process of a node."""


def _name_no_server(node: Node, **_: object) -> None:
    """Take the place of the dashboard's start: each node's agent looks for its address every second until it is known,
    and logs a traceback each time. At this one nobody listens."""
    place = ray_constants.DASHBOARD_ADDRESS.encode()
    node.get_gcs_client().internal_kv_put(place, b"127.0.0.1:9", True, ray_constants.KV_NAMESPACE_DASHBOARD)


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are being drained; `ray.nodes()` doesn't tell."""
    return set(state.state.get_draining_nodes())


def abandoned_reservations() -> list[ray.PlacementGroupID]:
    """Return the placement groups that dead actors of ended jobs left; the public table names no creator."""
    table = state.state._connect_and_get_accessor().get_placement_group_table()
    found = [gcs_pb2.PlacementGroupTableData.FromString(raw) for raw in table]
    return [
        ray.PlacementGroupID(group.placement_group_id)
        for group in found
        if group.state != gcs_pb2.PlacementGroupTableData.REMOVED
        and group.creator_job_dead
        and not group.is_detached
        and _is_dead(group.creator_actor_id.hex())  # else it is an actor's that lives on
    ]


def _is_dead(actor_id: str) -> bool:
    return bool(actor_id) and state.actors(actor_id).get("State", "DEAD") == "DEAD"


def with_rungs(asha: Any, milestones: Iterable[int]) -> Any:
    """Have a scheduler of Tune's ASHA judge trials at these times; return its bracket, which takes results."""
    check_attributes(asha, "_brackets")
    bracket = asha._brackets[0]
    check_attributes(bracket, "_rungs", "on_result")
    bracket._rungs = [(milestone, {}) for milestone in sorted(milestones, reverse=True)]
    return bracket


def is_read(callback: Any) -> bool:
    """Say whether Tune has all that a `TuneReportCallback` got from Ray Train."""
    check_attributes(callback, "_training_actor_item_queue")
    return bool(callback._training_actor_item_queue.empty())


def prestart_workers(node: Mapping[str, Any], environment: str, count: int = 1) -> None:
    """Ask a node (an entry of `ray.nodes()`) for spare processes of an environment, for the caller's job."""
    request = node_manager_pb2.PrestartWorkersRequest()
    request.language = common_pb2.Language.Value("PYTHON")
    request.num_workers = count
    request.job_id = bytes.fromhex(ray.get_runtime_context().get_job_id())
    request.runtime_env_info.serialized_runtime_env = environment
    request.keep_alive_duration_secs = _KEEP_S
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_CALL_TIMEOUT_S)


def nodes_at(cluster: str, host: str) -> list[str]:
    """Return the ids of the living nodes of the cluster at `cluster` that have the IP address `host`; as no driver."""
    found = ray._raylet.GcsClient(address=cluster).get_all_node_info(timeout=_CALL_TIMEOUT_S)
    here = [node for node in found.values() if node.node_manager_address == host]
    return [node.node_id.hex() for node in here if node.state == gcs_pb2.GcsNodeInfo.ALIVE]


def drain_node(cluster: str, node_id: str, *, left_s: float, why: str) -> None:
    """Tell a cluster that a node will be taken away in `left_s` seconds: it gets no new work, and runs are told."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + left_s) * 1000)
    ray._raylet.GcsClient(address=cluster).drain_node(node_id, reason, why, deadline_ms, timeout=_CALL_TIMEOUT_S)

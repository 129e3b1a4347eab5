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
from typing import Any

log = logging.getLogger(__name__)

HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Ray's environment variable for the function that a new process runs first, as `module.function`."""
_KEEP_S = 10 * 365 * 86400
_CALL_TIMEOUT_S = 10.0


def start_standby(delay_s: float) -> None:
    """Ask this node, in `delay_s` seconds and in a thread, for a spare process like the calling worker.

    A group that ends earlier, as in a short run, costs nothing for it. It is only speed that is at stake: where Ray
    doesn't know the call, as in another version of it, nothing happens.
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


def ask_node(node: dict[str, Any], environment: str, count: int = 1) -> None:
    """Ask a node (an entry of `ray.nodes()`) for spare processes of an environment, for the caller's job."""
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    request = node_manager_pb2.PrestartWorkersRequest()
    request.language = common_pb2.Language.Value("PYTHON")
    request.num_workers = count
    request.job_id = bytes.fromhex(ray.get_runtime_context().get_job_id())
    request.runtime_env_info.serialized_runtime_env = environment
    request.keep_alive_duration_secs = _KEEP_S
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_CALL_TIMEOUT_S)


def _start_quietly() -> None:
    import ray

    try:
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        ask_node(node, current_environment())
    except Exception as error:
        log.info("no spare process: %s", error)

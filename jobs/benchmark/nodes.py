"""A Ray cluster of several nodes on this machine, whose workers and nodes can be killed."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import psutil

from infra.cluster.connect import prepare_environment

TRAIN_WORKER = "ray::RayTrainWorker"
CONTROLLER = "ray::StageController"


class Nodes:
    """A head without CPUs, for the controllers, and nodes of one CPU each. As a context it leaves nothing running."""

    def __init__(self, count: int) -> None:
        prepare_environment()
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False},
        )
        self.nodes: list[Any] = []
        for _ in range(count):
            self.add()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        family = [member for node in (*self.nodes, self._cluster.head_node) for member in self._family(node)]
        self._cluster.shutdown()
        for member in family:
            if member.is_running():
                member.kill()

    @property
    def address(self) -> str:
        """Address that a driver connects to."""
        address: str = self._cluster.address
        return address

    def add(self) -> Any:
        """Start another node and return it."""
        node = self._cluster.add_node(num_cpus=1)
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """End all processes of a node at once by SIGKILL."""
        family = self._family(node)
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=10)
        self.nodes.remove(node)
        self._cluster.worker_nodes.discard(node)

    def replace_lost(self) -> None:
        """Start another node for each that Ray gave up, as one that was stopped for long: its raylet ends itself."""
        for node in [node for node in self.nodes if _raylet(node).poll() is not None]:
            self.kill(node)
            self.add()

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets of the nodes, without the head's."""
        return [psutil.Process(_raylet(node).pid) for node in self.nodes if _raylet(node).poll() is None]

    def head(self) -> list[psutil.Process]:
        """Return what is on the head for as long as the cluster is: the GCS, a raylet, a monitor, their agents."""
        return [
            psutil.Process(info.process.pid)
            for kind in self._cluster.head_node.all_processes.values()
            for info in kind
            if info.process.poll() is None
        ]

    def drain(self, node: Any, *, grace_s: float) -> None:
        """Give notice that a node is taken away in `grace_s` seconds, as a cloud does with a spot machine."""
        from infra.cluster.ray_private import drain_node

        drain_node(self.address, node.node_id, left_s=grace_s, why="taken away")

    def train_workers(self, node: Any) -> list[psutil.Process]:
        """Return the processes that train on a node."""
        return [member for member in self._family(node) if _title(member).startswith(TRAIN_WORKER)]

    def controllers(self) -> list[psutil.Process]:
        """Return the processes of runs' controllers; they are on the driver's node, the head."""
        return [member for member in self._family(self._cluster.head_node) if _title(member).startswith(CONTROLLER)]

    def left_over(self, timeout: float = 30.0) -> int:
        """Wait for what ended runs have used to be free; return how many processes and reservations are not."""
        import ray

        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        deadline = time.monotonic() + timeout
        while left := self._in_use(ray.util.placement_group_table()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        ray.shutdown()
        return left

    def _in_use(self, groups: dict[str, Any]) -> int:
        workers = [worker for node in self.nodes for worker in self.train_workers(node)]
        reserved = [group for group in groups.values() if group["state"] != "REMOVED"]
        return len(workers) + len(self.controllers()) + len(reserved)

    def _family(self, node: Any) -> list[psutil.Process]:
        """Return a node's processes, the raylet first."""
        found = []
        for kind in node.all_processes.values():
            for info in kind:
                if psutil.pid_exists(info.process.pid):
                    process = psutil.Process(info.process.pid)
                    found += [process, *process.children(recursive=True)]
        return found


def _raylet(node: Any) -> subprocess.Popen[bytes]:
    process: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return process


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended
        return ""

"""The process group of a run's workers: what Ray's `TorchConfig` sets up, with PyTorch in the workers alone.

Ray's has the process that starts a worker group import PyTorch too: seconds in which no worker is started yet, and
memory for the whole run.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train import BackendConfig
from ray.train.backend import Backend

log = logging.getLogger(__name__)

IMPORT_S = 300.0
"""What a worker may need for importing PyTorch before it joins."""
LEAVE_TIMEOUT_S = 30.0
"""For how long the workers of a group that ends are waited for, as by Ray's `TorchConfig`."""


class ProcessGroup(Backend):
    """Has the workers of a group join a process group of PyTorch, and leave it at the end."""

    share_cuda_visible_devices = True
    """NCCL wants each worker to see all GPUs that the group has on its node."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers join; called where the group is started."""
        place, size = worker_group.execute_single(0, _meeting_place), len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, place, rank, size, backend_config.timeout_s
                )
                for rank in range(size)
            ],
            timeout=backend_config.timeout_s + IMPORT_S,
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers leave; the processes of those that don't are ended anyway."""
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_TIMEOUT_S)
        except GetTimeoutError:
            log.warning("a worker didn't leave its process group in %.0f s; its process is ended", LEAVE_TIMEOUT_S)


@dataclass(frozen=True, kw_only=True)
class ProcessGroupConfig(BackendConfig):
    """How a group's workers talk to each other."""

    backend: str
    """`gloo` or `nccl`."""
    timeout_s: int
    """After how long a collective that one rank doesn't come to fails."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up."""
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        """What each worker trains in."""
        return _on_own_gpu


def _meeting_place() -> str:
    """Return the address at which the worker that calls this, rank 0, waits for the others."""
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _join(backend: str, place: str, rank: int, size: int, timeout_s: int) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        backend, init_method=place, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
    )


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


@contextmanager
def _on_own_gpu() -> Iterator[None]:
    """Have the thread that trains use its worker's GPU, if it has one, where no device is named."""
    import torch
    from ray.train.torch import get_device

    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    yield

"""How a group's workers join and leave their process group, without Ray's cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError

from pipeline.run import process_group
from pipeline.run.process_group import IMPORT_S, LEAVE_TIMEOUT_S, ProcessGroup, ProcessGroupConfig

CONFIG = ProcessGroupConfig(backend="gloo", timeout_s=40)


class Workers:
    """Stands in for Ray's worker group: keeps what each rank is to run, and runs only what is waited for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.started: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return self.size

    def execute_single(self, rank: int, run: Callable[..., Any], *arguments: Any) -> Any:
        self.started.append((rank, run, arguments))
        return run(*arguments)

    def execute_single_async(self, rank: int, run: Callable[..., Any], *arguments: Any) -> str:
        self.started.append((rank, run, arguments))
        return f"rank {rank}"

    def execute_async(self, run: Callable[..., Any]) -> list[str]:
        return [self.execute_single_async(rank, run) for rank in range(self.size)]


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float]]:
    """What Ray is waited for, and for how many seconds."""
    found: list[tuple[list[str], float]] = []
    monkeypatch.setattr(ray, "get", lambda refs, timeout: found.append((refs, timeout)))
    return found


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the node's address."""

    def set_to(host: str) -> None:
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: host)

    set_to("127.0.0.1")
    yield set_to
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("address")
def test_all_ranks_join_at_once_where_rank_0_is(waited: list[tuple[list[str], float]]) -> None:
    workers = Workers(3)
    ProcessGroup().on_start(workers, CONFIG)
    meeting, *joins = workers.started
    assert meeting == (0, process_group._meeting_place, ())
    (place,) = {arguments[1] for _, _, arguments in joins}
    assert place.startswith("tcp://127.0.0.1:")
    assert joins == [(rank, process_group._join, ("gloo", place, rank, 3, 40)) for rank in range(3)]
    # None is waited for before the last one is started: they wait for each other.
    assert waited == [(["rank 0", "rank 1", "rank 2"], 40 + IMPORT_S)]


def test_an_address_of_ipv6_is_in_brackets(address: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    address("::1")

    class Free:
        """A socket of either family: IPv6 may be off on this machine."""

        def __init__(self, family: int) -> None:
            self.family = family

        def __enter__(self) -> Free:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def bind(self, place: tuple[str, int]) -> None:
            assert place == ("", 0)

        def getsockname(self) -> tuple[str, int, int, int]:
            assert self.family == process_group.socket.AF_INET6
            return "::", 4711, 0, 0

    monkeypatch.setattr(process_group.socket, "socket", Free)
    assert process_group._meeting_place() == "tcp://[::1]:4711"


@pytest.mark.usefixtures("address")
def test_a_worker_joins_with_the_groups_backend_and_leaves_where_there_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process_group._leave()  # of none: a worker that failed before it joined
    process_group._join("gloo", process_group._meeting_place(), 0, 1, 40)
    assert (dist.get_backend(), dist.get_rank(), dist.get_world_size()) == ("gloo", 0, 1)
    process_group._leave()
    assert dist.is_initialized()  # there is nobody to leave
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    process_group._leave()
    assert not dist.is_initialized()


def test_all_ranks_leave_and_one_that_does_not_ends_nothing(
    waited: list[tuple[list[str], float]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers(2)
    ProcessGroup().on_shutdown(workers, CONFIG)
    assert workers.started == [(rank, process_group._leave, ()) for rank in range(2)]
    assert waited == [(["rank 0", "rank 1"], LEAVE_TIMEOUT_S)]

    def too_late(refs: list[str], timeout: float) -> None:
        raise GetTimeoutError("no answer")

    monkeypatch.setattr(ray, "get", too_late)
    with caplog.at_level(logging.WARNING):
        ProcessGroup().on_shutdown(workers, CONFIG)
    assert "a worker didn't leave its process group in 30 s" in caplog.text


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", ["cuda:1"]), ("cpu", [])])
def test_a_worker_trains_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, device: str, expected: list[str]) -> None:
    used: list[str] = []
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda one: used.append(str(one)))
    with CONFIG.train_func_context():
        assert used == expected
    assert CONFIG.backend_cls is ProcessGroup
    assert ProcessGroup.share_cuda_visible_devices

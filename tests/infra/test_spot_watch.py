"""The watcher of a spot node, against a metadata service and a cluster that fail in every way before they answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from infra import spot_watch
from infra.cluster.config import ClusterError, RayVersionError

NOTICE = {"action": "terminate", "time": (datetime.now(UTC) + timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%SZ")}


class Metadata(BaseHTTPRequestHandler):
    """Gives the answers in turn to who asks for the notice; the last one for good. None: the connection is cut off."""

    answers: ClassVar[list[bytes | int | None]] = []

    def do_PUT(self) -> None:
        self._say(b"token")

    def do_GET(self) -> None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, int):
            self.send_error(answer)
        elif answer is None:
            self.wfile.write(b"HT")
        else:
            self._say(answer)

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def metadata(*answers: bytes | int | None) -> Iterator[str]:
    Metadata.answers = list(answers)
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_watch, "PAUSE_S", 0.0)
    monkeypatch.setattr(spot_watch, "LOOK_EVERY_S", 0.0)


ODD = (404, 500, None, b"", b"[]", b"null", b"{}", b'{"action": "stop"}', b'{"action": "stop", "time": 1}')


@pytest.mark.parametrize("answer", ODD, ids=repr)
def test_whatever_else_the_metadata_service_says_is_no_notice(answer: bytes | int | None) -> None:
    with metadata(answer) as url:
        assert spot_watch.notice(url) is None


def test_the_watcher_goes_on_until_ray_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failures: list[Exception] = [
        ConnectionRefusedError("refused"),
        ClusterError("no living node"),
        RuntimeError("head is busy\nmore"),
    ]
    told: list[int] = []

    def drain(address: str, left_s: int) -> None:
        assert address == "head:6379"
        if failures:
            raise failures.pop(0)
        told.append(left_s)

    monkeypatch.setattr(spot_watch, "drain", drain)
    with metadata(*ODD, json.dumps(NOTICE).encode()) as url:
        spot_watch.main(["--address", "head:6379", "--metadata", url])
    assert len(told) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("AWS will terminate this node in ")
    assert [line.partition(";")[0] for line in lines[1:4]] == [
        "Ray could not be told yet: refused",
        "Ray could not be told yet: no living node",
        "Ray could not be told yet: head is busy",
    ]
    assert lines[4].startswith("Ray is draining this node")


class Node:
    """A node whose ranks leave after it was looked at so often, once Ray has been told; which fails at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, ranks_for: int, failures: int = 0) -> None:
        self.left, self.failures, self.told = ranks_for, failures, list[int]()
        monkeypatch.setattr(spot_watch, "drain", self.drain)
        monkeypatch.setattr(spot_watch, "is_training", self.is_training)

    def drain(self, address: str, left_s: int) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionRefusedError("refused")
        self.told.append(left_s)

    def is_training(self) -> bool:
        self.left -= bool(self.told)
        return self.left > 0


def test_a_node_that_leaves_now_is_drained_once_and_waits_for_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch, ranks_for=3, failures=2)
    spot_watch.main(["--address", "head:6379", "--now", "100"])
    assert node.told == [100]
    assert node.left == 0


def test_a_node_without_ranks_leaves_at_once_also_from_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch, ranks_for=0, failures=10**9)
    spot_watch.main(["--address", "head:6379", "--now", "100"])
    assert node.told == []


def test_a_node_whose_ranks_stay_leaves_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for failures in (0, 10**9):
        Node(monkeypatch, ranks_for=10**9, failures=failures)
        spot_watch.main(["--address", "head:6379", "--now", "0.05"])


def test_another_ray_is_no_failure_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def drain(address: str, left_s: int) -> None:
        raise RayVersionError("another")

    monkeypatch.setattr(spot_watch, "drain", drain)
    with pytest.raises(RayVersionError):
        spot_watch.drain_in_time("head:6379", NOTICE)


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_is_drained_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from infra.cluster import ray_private

    drained: list[str] = []
    monkeypatch.setattr(ray_private, "drain_node", lambda cluster, node, **_: drained.append(node))
    spot_watch.drain(ray.get_runtime_context().gcs_address, 100)
    assert drained == [ray.get_runtime_context().get_node_id()]

"""The parts of the soak, without a cluster: the slow network, the full disk, growth, and the order of faults."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.chaos.__main__ import KINDS, Options, planned
from tests.chaos.faults import FAULTS, SLOW, Faults
from tests.chaos.growth import Growth, Trend, Usage
from tests.chaos.killer import SECOND
from tests.support.slow_network import FAST, Network, slow_network
from tests.support.small_disk import FILLER, small_disk

BODY = os.urandom(200_000)


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was sent, or with `BODY`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))) or BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.daemon_threads = True
        Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


def ask(connection: http.client.HTTPConnection, body: bytes | None = None) -> bytes:
    connection.request("GET", "/", body=body)
    return connection.getresponse().read()


def connected(url: str) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=20))


def test_the_network_changes_no_byte_slow_or_fast(server: str) -> None:
    with slow_network(server) as network, connected(network.url) as connection:
        assert ask(connection) == BODY
        network.network = Network(latency_s=0.001, bytes_per_s=20e6)
        assert ask(connection, BODY[::-1]) == BODY[::-1]  # over the connection that was fast
        assert network.cuts == 0


def test_a_network_that_loses_all_cuts_and_is_well_afterwards(server: str) -> None:
    with slow_network(server) as network, connected(network.url) as connection:
        network.network = Network(cut_share=1.0)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(connection)
        assert network.cuts == 1
        network.network = FAST
        connection.close()
        assert ask(connection) == BODY


def test_a_server_that_is_away_ends_the_connection() -> None:
    with (
        slow_network("http://127.0.0.1:1") as network,
        connected(network.url) as connection,
        pytest.raises((ConnectionError, http.client.HTTPException)),
    ):
        ask(connection)


def test_a_full_disk_takes_nothing_more_until_it_is_freed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        if disk is None:
            pytest.skip("mounting a file system takes root")
        disk.fill()
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number says which)
            (disk.folder / "shard").write_bytes(b"1")
        assert caught.value.errno == errno.ENOSPC
        disk.fill()  # it may be so already
        disk.free()
        assert not (disk.folder / FILLER).exists()
        (disk.folder / "shard").write_bytes(bytes(2**19))
    assert not (tmp_path / "disk").is_mount()


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([100.0, 500.0], None),
        ([100.0, 900.0, 100.0, 900.0, 100.0], None),
        ([100.0, 100.0, 90.0, 90.0, 124.0, 126.0], True),  # 5 % and 20 above
        ([100.0, 100.0, 90.0, 90.0, 124.0, 128.0], False),
        ([100.0] * 6 + [110.0, 900.0, 110.0], True),  # one odd round
        ([100.0] * 6 + [110.0, 130.0, 130.0], False),
        ([1000.0, 1000.0, 900.0, 900.0, 500.0, 500.0], True),
    ],
)
def test_flat_is_a_last_third_as_the_first(values: list[float], flat: bool | None) -> None:
    assert Trend(values, free=20).is_flat is flat


def test_growth_is_named_by_part_and_quantity_but_for_servers() -> None:
    growth = Growth()
    for number in range(6):
        more = Usage(100, 10 + 30 * number)
        growth.add({"worker": [Usage(1, 1), more, Usage(2, 2)], "driver": [Usage(200, 20)], "S3 server": [more]})
    assert growth.grown(but=["S3 server"]) == ["worker, handles grew: 10 40 70 100 130 160"]
    assert growth.trends()["worker, handles"].slope == pytest.approx(30)
    assert growth.trends()["driver, MB"].slope == 0


def test_usage_is_that_of_the_largest_process_and_skips_those_that_ended() -> None:
    me = psutil.Process()
    gone = psutil.Popen(["true"])
    gone.wait()
    usage = Usage.of([gone, me])
    assert usage.memory_mb > 1
    assert usage.handles > 2
    assert Usage.of([]) == Usage(0, 0)


@pytest.fixture
def sleeper() -> Iterator[psutil.Popen]:
    process = psutil.Popen(["sleep", "60"])
    yield process
    if process.is_running():
        process.kill()
        process.wait()


def faults_at(place: Any, later: list[Callable[[], Any]], driver: psutil.Process) -> Faults:
    nodes = SimpleNamespace(nodes=[], controllers=list, raylets=list)
    run: Any = SimpleNamespace(driver=lambda: [driver])
    place.nodes = nodes
    return Faults(place, run, Random(0), lambda seconds, action: later.append(action))


def test_a_pause_stops_a_process_until_it_is_over(sleeper: psutil.Popen) -> None:
    later: list[Callable[[], Any]] = []
    place: Any = SimpleNamespace()
    assert re.fullmatch(r"driver for \d+ s", faults_at(place, later, sleeper).make("pause"))
    assert _becomes(sleeper, psutil.STATUS_STOPPED)
    (wake,) = later
    wake()
    assert _becomes(sleeper, psutil.STATUS_SLEEPING)
    sleeper.kill()
    sleeper.wait()
    wake()  # it may have been killed meanwhile


def test_a_full_disk_has_no_cache_and_a_slow_network_is_fast_again(tmp_path: Path, sleeper: psutil.Popen) -> None:
    later: list[Callable[[], Any]] = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.tar").write_bytes(b"shard")
    done: list[str] = []
    disk = SimpleNamespace(folder=tmp_path, fill=lambda: done.append("fill"), free=lambda: done.append("free"))
    links = [SimpleNamespace(network=FAST), SimpleNamespace(network=FAST)]
    place: Any = SimpleNamespace(disk=disk, s3_link=links[0], mlflow_link=links[1])
    faults = faults_at(place, later, sleeper)
    faults.make("disk")
    faults.make("network")
    assert not list(tmp_path.iterdir())
    assert [link.network for link in links] == [SLOW, SLOW]
    for end in later:
        end()
    assert done == ["fill", "free"]
    assert [link.network for link in links] == [FAST, FAST]


def _becomes(process: psutil.Process, status: str) -> bool:
    for _ in range(1000):
        if process.status() == status:
            return True
        time.sleep(0.01)
    return False


def test_a_process_that_ends_while_it_is_looked_for_stops_no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.growth.SAMPLE_EVERY_S", 0.001)
    looks: list[int] = []

    def processes() -> list[psutil.Process]:
        looks.append(1)
        if len(looks) == 1:
            raise psutil.NoSuchProcess(1)
        return [psutil.Process()]

    growth = Growth()
    with growth.watching({"worker": processes}):
        while len(looks) < 3:
            time.sleep(0.001)
    assert growth.rounds[0]["worker"].memory_mb > 1


def test_a_soak_has_every_fault_in_each_run_and_another_order_in_each_round() -> None:
    options = Options(minutes=120, kills=len(KINDS) + len(FAULTS) + 1)
    first, second = (planned(options, False, seed, disk=True) for seed in (0, 1))
    assert sorted(first) == sorted(second) == sorted([*KINDS, *FAULTS, SECOND])
    assert first != second
    assert "disk" not in planned(options, False, 0, disk=False)
    assert set(planned(Options(kills=50), False, 0, disk=True)) == {*KINDS}

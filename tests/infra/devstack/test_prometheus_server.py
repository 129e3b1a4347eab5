"""A real Prometheus: it reads what Ray lists, and answers each question of the Grafana dashboard."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.prometheus import GAUGES
from infra.devstack.server import free_ports
from infra.devstack.servers import PrometheusServer

DASHBOARD = Path(__file__).parents[3] / "infra" / "grafana" / "crescendo.json"
pytestmark = pytest.mark.skipif(
    not PrometheusServer.is_installed() and not os.environ.get("CI"),
    reason="prometheus is not on this machine (Debian: prometheus)",
)


class Node(BaseHTTPRequestHandler):
    """A node's metrics as Ray writes them, of two runs."""

    def do_GET(self) -> None:
        lines = [
            f'ray_{name}{{run="{run}",SessionName="s"}} {number}'
            for name in GAUGES
            for number, run in enumerate(("a", "b"), 1)
        ]
        body = "".join(f"{line}\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    folder = tmp_path_factory.mktemp("prometheus")
    node = HTTPServer(("127.0.0.1", 0), Node)
    threading.Thread(target=node.serve_forever, daemon=True).start()
    targets = folder / "targets.json"
    targets.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{node.server_port}"]}]))
    server = PrometheusServer(folder / "server", port=free_ports(1), targets=targets, scrape_every_s=1)
    server.start()
    deadline = time.monotonic() + 60
    while not asked(server, "query", query="ray_crescendo_workers")["result"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield server
    server.stop()
    node.shutdown()
    node.server_close()


def asked(server: PrometheusServer, what: str, **parameters: str) -> Any:
    url = f"{server.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_each_panel_has_a_line_for_each_run(prometheus: PrometheusServer, expression: str) -> None:
    for chosen, runs in ((".*", {"a", "b"}), ("b", {"b"}), ("a|b", {"a", "b"})):
        found = asked(prometheus, "query", query=expression.replace("$run", chosen))["result"]
        assert {series["metric"]["run"] for series in found} == runs


def test_the_choice_of_runs_has_them(prometheus: PrometheusServer) -> None:
    board = json.loads(DASHBOARD.read_text())
    (variable,) = [one for one in board["templating"]["list"] if one["name"] == "run"]
    assert variable["query"] == "label_values(ray_crescendo_workers, run)"
    assert asked(prometheus, "label/run/values", **{"match[]": "ray_crescendo_workers"}) == ["a", "b"]

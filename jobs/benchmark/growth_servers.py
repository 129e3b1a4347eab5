"""The servers of the simulation, each in a process of its own: what a run would reach over the network.

They speak as much of MLflow's and S3's protocols as a run asks for, and count it. A real server's own cost is not this
project's, and would hide what is.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any, ClassVar
from urllib.parse import urlsplit

OBJECT_BYTES = 4096
"""Size of each object of the S3 server."""


class _Handler(BaseHTTPRequestHandler):
    """Keeps connections, and says nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send an answer in one piece."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Mlflow(_Handler):
    """A tracking server with one experiment and one run, which counts the points that it is given."""

    artifacts = ""
    points: ClassVar[Counter[str]] = Counter()
    """Of each metric, how many; a point that comes again is counted again."""
    last: ClassVar[dict[str, int]] = {}
    """Of each metric, the last step."""
    repeated = 0
    """Points of a step that their metric had reached before."""

    def do_GET(self) -> None:
        """Answer."""
        self._answer({})

    def do_POST(self) -> None:
        """Answer."""
        self._answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"))

    do_PATCH = do_DELETE = do_POST

    def _answer(self, values: dict[str, Any]) -> None:
        call = urlsplit(self.path).path.rpartition("/")[2]
        if call == "log-batch":
            for metric in values.get("metrics", ()):
                self._count(metric["key"], int(metric["step"]))
        self.answer(200, json.dumps(self._answers().get(call, {})).encode(), Content_Type="application/json")

    def _count(self, name: str, step: int) -> None:
        Mlflow.repeated += step <= self.last.get(name, -1)
        self.last[name] = step
        self.points[name] += 1

    def _answers(self) -> dict[str, dict[str, Any]]:
        info = {
            "run_id": "0" * 32, "run_uuid": "0" * 32, "experiment_id": "1", "status": "RUNNING", "user_id": "user",
            "start_time": 1, "artifact_uri": self.artifacts, "lifecycle_stage": "active",
        }  # fmt: skip
        experiment = {"experiment_id": "1", "name": "growth", "lifecycle_stage": "active"}
        run = {"run": {"info": info, "data": {}}}
        return {"get-by-name": {"experiment": experiment}, "create": run, "get": run, "update": {"run_info": info}}


class S3(_Handler):
    """A bucket whose object of the name N holds N, N, ...; some requests get a 503, all wait."""

    latency_s = 0.0
    busy_share = 0.0
    """Share of the requests that are answered with 503 SlowDown."""
    requests: ClassVar[Counter[str]] = Counter()
    """Of each object, how often it was asked for."""
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def do_GET(self) -> None:
        """Answer a read of a whole object or of a range."""
        name = urlsplit(self.path).path.rpartition("/")[2]
        with self._lock:
            self.requests[name] += 1
            number = self.requests[name]
        time.sleep(self.latency_s)
        if _share(int(name), number) < self.busy_share:
            self.answer(503, b"<Error><Code>SlowDown</Code></Error>", Content_Type="application/xml")
            return
        body = content(int(name))
        if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            body = body[int(span[1]) : int(span[2]) + 1]
        self.answer(206 if span else 200, body, ETag=f'"{name}"')


def content(number: int) -> bytes:
    """Return what the S3 server's object of this name holds."""
    return number.to_bytes(8, "little") * (OBJECT_BYTES // 8)


def _share(number: int, attempt: int) -> float:
    """Return a number in [0, 1) that looks drawn, of an object and the how-manieth request for it."""
    return int.from_bytes(blake2b(f"{number} {attempt}".encode(), digest_size=4).digest()) / (1 << 32)


@contextmanager
def served(handler: type[_Handler], **settings: object) -> Iterator[tuple[str, Connection]]:
    """Have a server of these class attributes run; give its URL, and the pipe that answers names of attributes."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(handler, settings, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a server that dies is heard of
    try:
        yield ours.recv(), ours
    finally:
        process.terminate()
        process.join()


def _serve(handler: type[_Handler], settings: dict[str, object], pipe: Connection) -> None:
    for name, value in settings.items():
        setattr(handler, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.socket.listen(1024)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(f"http://127.0.0.1:{server.server_address[1]}")
    while True:
        pipe.send(getattr(handler, pipe.recv()))


def asked(pipe: Connection, name: str) -> object:
    """Return an attribute of a server's handler."""
    pipe.send(name)
    return pipe.recv()

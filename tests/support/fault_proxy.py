"""A proxy before a real S3 server that makes faults: errors, slow answers, connections cut in the middle of a body."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SLOW_S = 0.4
_CODES = {"403": "AccessDenied", "500": "InternalError", "501": "NotImplemented", "503": "SlowDown"}


class Request(NamedTuple):
    """What the proxy was asked for."""

    number: int
    path: str
    size: int
    """bytes of the range; 0 without one"""
    method: str = "GET"


Fault = Callable[[Request], str]
"""request -> "" (none), a status of `_CODES`, "cut", "slow", or "stuck" (no answer before the proxy is released)"""


class FaultProxy:
    """Forwards requests as they are, signature and all, unless the fault function says otherwise."""

    def __init__(self, upstream: str) -> None:
        self.fault: Fault = lambda request: ""
        self.requests: list[Request] = []
        self.released = threading.Event()
        self._host = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError, http.client.HTTPException):
                    proxy._answer(self)
                    return
                self.close_connection = True

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def whole(self, name: str) -> int:
        """How often all bytes of an object were asked for at once."""
        sizes = [request.size for request in self.requests if name in request.path]
        return sum(size > 40_000 for size in sizes)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        fault = self._fault_of(handler)
        sent = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if fault == "stuck":
            self.released.wait(60)
        if fault in _CODES:
            self._send(handler, int(fault), {}, f"<Error><Code>{_CODES[fault]}</Code></Error>".encode())
            return
        upstream = http.client.HTTPConnection(self._host, timeout=30)
        with contextlib.closing(upstream):
            headers = {name: value for name, value in handler.headers.items() if name.lower() != "expect"}
            upstream.request(handler.command, handler.path, body=sent or None, headers=headers)
            answer = upstream.getresponse()
            body = answer.read()
        head = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        self._send(handler, answer.status, head, body, fault)

    def _fault_of(self, handler: BaseHTTPRequestHandler) -> str:
        first, _, last = handler.headers.get("Range", "").removeprefix("bytes=").partition("-")
        with self._lock:
            size = int(last) - int(first) + 1 if first else 0
            request = Request(len(self.requests), handler.path, size, handler.command)
            self.requests.append(request)
            return self.fault(request)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, head: dict[str, str], body: bytes, fault: str = ""
    ) -> None:
        handler.send_response(status)
        for name, value in head.items():
            if name.lower() not in ("content-length", "transfer-encoding", "server"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", head.get("Content-Length", str(len(body))))
        handler.end_headers()
        half = len(body) // 2
        handler.wfile.write(body[:half])
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "cut":
            handler.wfile.flush()
            raise ConnectionAbortedError
        handler.wfile.write(body[half:])


def fault_proxy(upstream: str) -> contextlib.closing[FaultProxy]:
    return contextlib.closing(FaultProxy(upstream))

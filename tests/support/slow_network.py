"""A TCP proxy on loopback whose network can be made slow and lossy while it is used: for what `tc netem` would do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

CHUNK_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """How bytes travel, in each direction."""

    latency_s: float = 0.0
    """Delay of each chunk."""
    bytes_per_s: float = 0.0
    """Bandwidth of each connection; 0: no limit."""
    cut_share: float = 0.0
    """Probability that a chunk is lost, and its connection cut."""


FAST = Network()


class SlowNetwork:
    """Forwards connections to a server; `network` is read for each chunk, so a change holds at once."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self.network = FAST
        self.cuts = 0
        """Connections that were cut so far."""
        self._random = Random(seed)
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Cut all connections and stop listening."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ends = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            ends.append(up_writer)
            async with asyncio.TaskGroup() as group:  # one direction that is cut ends the other
                group.create_task(self._pump(reader, up_writer))
                group.create_task(self._pump(up_reader, writer))
        except* OSError:  # the server is away, an end closed it, or it was cut
            pass
        finally:
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            now = self.network
            pause_s = now.latency_s + (len(chunk) / now.bytes_per_s if now.bytes_per_s else 0)
            if pause_s:
                await asyncio.sleep(pause_s)
            if now.cut_share and self._random.random() < now.cut_share:
                self.cuts += 1
                raise ConnectionResetError
            writer.write(chunk)
            await writer.drain()
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def slow_network(upstream: str) -> contextlib.closing[SlowNetwork]:
    """Make one, fast as long as its `network` is not changed."""
    return contextlib.closing(SlowNetwork(upstream))

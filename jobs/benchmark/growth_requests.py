"""Many readers of an S3 server that is slow and often busy: what they read, how often they ask, what it costs."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple, cast

from datasets.files import s3
from jobs.benchmark.growth_servers import OBJECT_BYTES, S3, asked, content, served

THREADS = 64
"""Readers of a process."""


class _Share(NamedTuple):
    """What one process has read."""

    wrong: int
    cpu_s: float
    longest_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestCost:
    """What so many readers have cost."""

    readers: int
    reads: int
    lost: int
    """Reads that failed or gave other bytes."""
    requests: int
    """With those that were answered with 503."""
    most_requests: int
    """For one read."""
    cpu_s: float
    """Of the readers' processes."""
    longest_s: float
    """Seconds that a read took at most."""


def request_cost(readers: int, reads_each: int, *, busy_share: float, latency_s: float) -> RequestCost:
    """Have so many readers read so many objects each."""
    processes = -(-readers // THREADS)
    with (
        served(S3, latency_s=latency_s, busy_share=busy_share) as (url, server),
        ProcessPoolExecutor(processes, get_context("spawn"), initializer=_use, initargs=(url,)) as pool,
    ):
        per_process = [range(start, min(start + THREADS, readers)) for start in range(0, readers, THREADS)]
        shares = list(pool.map(partial(_read_all, reads_each=reads_each), per_process))
        requests = cast("dict[str, int]", asked(server, "requests"))
    return RequestCost(
        readers=readers,
        reads=readers * reads_each,
        lost=sum(share.wrong for share in shares) + readers * reads_each - len(requests),
        requests=sum(requests.values()),
        most_requests=max(requests.values()),
        cpu_s=sum(share.cpu_s for share in shares),
        longest_s=max(share.longest_s for share in shares),
    )


def _use(url: str) -> None:
    # A thread that waits for the interpreter's lock asks for it every 5 ms. Real readers are a few a process; of the
    # 64 here nearly all wait at any time, the longer the more processes share the CPUs: that isn't what reading costs.
    sys.setswitchinterval(1.0)
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "growth",
        "AWS_SECRET_ACCESS_KEY": "growth",
        "AWS_REGION": "us-east-1",
    }


def _read_all(readers: range, *, reads_each: int) -> _Share:
    numbers = range(readers.start * reads_each, readers.stop * reads_each)
    with ThreadPoolExecutor(len(readers)) as pool:
        began = time.process_time()
        found = list(pool.map(_read, numbers))
        cpu_s = time.process_time() - began
    return _Share(sum(not right for right, _ in found), cpu_s, max(seconds for _, seconds in found))


def _read(number: int) -> tuple[bool, float]:
    began = time.monotonic()
    start, length = number % 1024, OBJECT_BYTES // 2
    data = s3.read(f"s3://bucket/{number}", start=start, length=length, etag=str(number))
    return data == content(number)[start : start + length], time.monotonic() - began

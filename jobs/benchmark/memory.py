"""Memory and start-up time: sample order and manifest of a huge dataset, and a loader process at work."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.table import Table

from datasets.config import DataConfig
from datasets.loading.loader import build_loader
from datasets.loading.sample_order import SampleOrder
from datasets.loading.samples import View
from datasets.shards.manifest import ShardInfo
from datasets.shards.resolve import load_manifest
from jobs.benchmark.flags import check_at_least, read_flags
from jobs.common.display import wide_console

LANES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    shards: int = 100_000
    """Number of shards of the simulated dataset."""
    samples: int = 1_000_000_000
    """Number of samples of the simulated dataset."""
    rounds: int = 9
    """Number of timed starts."""
    data: Path = field(default_factory=lambda: Path("data/photographs/train"))
    """Shards for the loader process to read, such as those of `jobs.benchmark loader`."""
    image_size: int = 300
    """Its image size, in pixels."""
    batch_size: int = 64
    """Images per batch."""
    batches: int = 20
    """Number of batches before its memory is measured."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "shards", "samples", "rounds", "image_size", "batch_size", "batches")


def run(options: Options) -> dict[str, float]:
    """Measure everything; megabytes and milliseconds by name.

    Raises:
        DataError: no shards are there for the loader process.
    """
    load_manifest(str(options.data))  # before minutes are spent on the rest
    return {**_order(options), **_manifest(options), **_worker(options)}


def _order(options: Options) -> dict[str, float]:
    """Time from a cold start to the first batch's ids of all lanes, at positions all over the run, and its memory."""
    counts = np.full(options.shards, options.samples // options.shards)

    def seek(number: int) -> SampleOrder:
        order = SampleOrder(counts, seed=number, num_lanes=LANES, block_size=256, window_blocks=64)
        start = (number * 7919 + 1) % order.lane_length
        for lane in range(LANES):
            order.lane_samples(lane, start, start + 16)
        return order

    wall, cpu = [], []
    for number in range(options.rounds):
        began, began_cpu = time.perf_counter(), time.process_time()
        seek(number)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    kept, peak = _traced(lambda: seek(0))
    return {
        "seek_wall_ms": 1000 * statistics.median(wall),
        "seek_cpu_ms": 1000 * statistics.median(cpu),
        "order_mb": kept,
        "order_peak_mb": peak,
    }


def _manifest(options: Options) -> dict[str, float]:
    def shards() -> list[ShardInfo]:
        folder, number = "s3://bucket/train", options.samples // options.shards
        return [
            ShardInfo(
                url=f"{folder}/train-{index:06d}.tar",
                samples=number,
                num_bytes=1_000_000_000 + index,
                labelled=number,
                max_label=999,
                first_row=index * number,
                etag=f"{index:032x}",
                index=folder,
            )
            for index in range(options.shards)
        ]

    return {"manifest_mb": _traced(shards)[0]}


def _traced(make: Callable[[], Any]) -> tuple[float, float]:
    """Return (kept, peak) megabytes of what is made."""
    tracemalloc.start()
    made = make()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return kept / 1e6, peak / 1e6


def _worker(options: Options) -> dict[str, float]:
    """Run one loader process, and look at it from outside."""
    torch.set_num_threads(1)
    config = DataConfig(train=str(options.data), num_lanes=8, loader_workers=1, pyramid=False)
    loader = build_loader(
        config,
        View(image_size=options.image_size, magnitude=10, training=True),
        batch_size=options.batch_size,
        cursor=0,
        stop=1 << 40,
        rank=0,
        world_size=1,
    )
    before = {process.pid for process in psutil.Process().children()}
    batches = iter(loader)
    for _ in itertools.islice(batches, options.batches):
        pass
    worker = next(process for process in psutil.Process().children() if process.pid not in before)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
    found = {
        "worker_peak_rss_mb": int(status["VmHWM"].split()[0]) * 1024 / 1e6,
        "worker_own_mb": worker.memory_full_info().uss / 1e6,
        "parent_rss_mb": psutil.Process(os.getpid()).memory_info().rss / 1e6,
    }
    batches.close()  # type: ignore[attr-defined]
    return found


def as_table(found: dict[str, float], options: Options) -> Table:
    """The results for the terminal."""
    table = Table(
        title=f"{options.samples:,} samples in {options.shards:,} shards, {LANES} lanes", title_justify="left"
    )
    table.add_column("what")
    table.add_column("measured", justify="right")
    batch = f"{options.batch_size} x {options.image_size} px"
    for what, value in (
        (f"cold start to the first batch's sample ids, median of {options.rounds}", f"{found['seek_wall_ms']:.0f} ms"),
        ("the same, CPU time", f"{found['seek_cpu_ms']:.0f} ms"),
        ("sample order: resident / peak", f"{found['order_mb']:.1f} / {found['order_peak_mb']:.1f} MB"),
        ("the manifest", f"{found['manifest_mb']:.1f} MB"),
        (f"a loader process, {batch}: peak with shared pages", f"{found['worker_peak_rss_mb']:.0f} MB"),
        ("the same, private pages only", f"{found['worker_own_mb']:.0f} MB"),
    ):
        table.add_row(what, value)
    return table


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = read_flags(Options, argv, __doc__)
    found = run(options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        wide_console().print(as_table(found, options))
    return 0

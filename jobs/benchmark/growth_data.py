"""A huge dataset: its shards indexed, read again and put in order, and an indexing that is killed half way."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tarfile
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from datasets.files.s3 import RemoteFile
from datasets.loading.batch_sampler import TrainSteps
from datasets.loading.sample_order import SampleOrder
from datasets.shards import scan_log
from datasets.shards.describe import describe
from datasets.shards.index_checks import check_keys
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.manifest import DatasetManifest, save_manifest
from datasets.shards.resolve import load_manifest
from datasets.shards.tar_index import MASK_DTYPE, ShardIndex

Result = TypeVar("Result")
PER_SHARD = 10_000
"""Samples of a shard in the sample order and the index's memory; the tars that are indexed have one each."""
LANES = 4096
WORLD_SIZE = 4096
BATCH = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCost:
    """What so many shards have cost."""

    shards: int
    index_cpu_s: float
    """Of indexing them, over all processes."""
    killed_at: int
    """Shards that were indexed when the indexing was killed."""
    read_again: int
    """Of these, how many the next one has read again."""
    manifest_bytes: int
    load_cpu_s: float
    """Of reading the manifest and comparing it with the files."""
    order_cpu_s: dict[str, float]
    """Of one rank's first batch and plan, at positions in the run, with `PER_SHARD` samples in each shard."""


def data_cost(shards: int) -> DataCost:
    """Measure so many shards."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        for number in range(shards):
            _write_tar(Path(folder), number)
        killed_at = _killed_index(folder, shards)
        first: list[int] = []
        index_shards(folder, folder, IndexRules(), progress=lambda done, total: first.append(done), tell=_nothing)
        read_again = killed_at - (first[0] - 1 if first else shards)
        _, index_cpu_s = _timed(lambda: index_shards(folder, folder, IndexRules(), tell=_nothing), _cpu_of_all)
        manifest, load_cpu_s = _timed(lambda: load_manifest(folder))
        manifest_bytes = Path(folder, "manifest.json").stat().st_size
    epoch = shards * PER_SHARD // LANES * LANES
    positions = {"start": 0, "half an epoch": epoch // 2 // LANES * LANES, "90 epochs": 90 * epoch}
    return DataCost(
        shards=shards,
        index_cpu_s=index_cpu_s,
        killed_at=killed_at,
        read_again=read_again,
        manifest_bytes=manifest_bytes,
        load_cpu_s=load_cpu_s,
        order_cpu_s={name: _first_batch(manifest, cursor) for name, cursor in positions.items()},
    )


def _first_batch(manifest: DatasetManifest, cursor: int) -> float:
    """Return the CPU seconds from a cold start to one rank's first batch and its plan: the median of three."""

    def start() -> None:
        counts = manifest.shard_counts * PER_SHARD
        order = SampleOrder(counts, seed=0, num_lanes=LANES, block_size=256, window_blocks=64)
        steps = TrainSteps(
            order, manifest, batch_size=BATCH, cursor=cursor, stop=cursor + BATCH, rank=7, world_size=WORLD_SIZE
        )
        assert len(next(iter(steps)).ids) == BATCH // WORLD_SIZE
        steps.shards_ahead(cursor)

    return sorted(_timed(start)[1] for _ in range(3))[1]


def bytes_per_sample(shards: int = 100) -> float:
    """Return the peak memory of an indexing's last part, from the scans to the written index, a sample."""
    tracemalloc.start()
    try:
        scans = [_scan(number) for number in range(shards)]
        files = [
            RemoteFile(f"s3://bucket/train-{number:06d}.tar", 1 << 30, f"{number:032x}") for number in range(shards)
        ]
        check_keys(files, scans)
        rows = [scan.rows for scan in scans]
        manifest = describe(
            files, rows, classes=[str(label) for label in range(1000)], kind="classification", source={}
        )
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            save_manifest(folder, manifest, rows, version="")
        return tracemalloc.get_traced_memory()[1] / (shards * PER_SHARD)
    finally:
        tracemalloc.stop()


def _scan(shard: int) -> ShardIndex:
    rows = np.zeros(PER_SHARD, dtype=MASK_DTYPE)
    rows["offset"], rows["label"] = np.arange(PER_SHARD) * 100_000, np.arange(PER_SHARD) % 1000
    keys = (np.arange(PER_SHARD, dtype=np.uint64) + np.uint64(shard * PER_SHARD)) * np.uint64(0x9E3779B97F4A7C15)
    return ShardIndex(rows, (), keys, Counter(), {}, "")


def _write_tar(folder: Path, number: int) -> None:
    parts = []
    for extension, content in (("jpg", b"x"), ("cls", b"%d" % (number % 10))):
        head = tarfile.TarInfo(f"{number:08d}.{extension}")
        head.size = len(content)
        parts += [head.tobuf(), content.ljust(512, b"\0")]
    (folder / f"train-{number:06d}.tar").write_bytes(b"".join([*parts, b"\0" * 1024]))


def _killed_index(folder: str, shards: int) -> int:
    """Have an indexing killed when it has read half of the shards; return how many that were."""
    process = multiprocessing.get_context("spawn").Process(target=_index_half, args=(folder, shards))
    process.start()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the indexing ended with {process.exitcode} before it was killed")
    return shards // 2


def _index_half(folder: str, shards: int) -> None:
    scan_log.WRITE_EVERY_S = 0.05  # as if it took hours

    def progress(done: int, total: int) -> None:
        if done >= shards // 2:
            os.killpg(os.getpid(), signal.SIGKILL)

    os.setpgid(0, 0)  # with the processes that read
    index_shards(folder, folder, IndexRules(), progress=progress, tell=_nothing)


def _nothing(line: str) -> None:
    pass


def _cpu_of_all() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _timed(call: Callable[[], Result], clock: Callable[[], float] = time.process_time) -> tuple[Result, float]:
    began = clock()
    result = call()
    return result, clock() - began

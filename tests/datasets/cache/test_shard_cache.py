"""The node's shard cache against a real S3 server, behind a proxy that counts and slows what is asked of it."""

from __future__ import annotations

import errno
import gzip
import io
import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.cache.prefetch import PublishedPlan
from datasets.cache.shard_cache import Fetched, ShardCache, shard_key
from datasets.checks import check_data
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.loader import build_eval_loader
from datasets.loading.reader import SampleReader
from datasets.shards.manifest import ShardInfo
from datasets.shards.resolve import load_manifest
from jobs.index import main as index
from tests.support.batches import train_batches
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.s3 import put
from tests.support.servers import S3Server
from tests.support.shards import image_of, png, write_shards


@pytest.fixture
def proxy(s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The way to the S3 server for what the test reads."""
    with fault_proxy(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def shards(shard_folder: Path, s3_server: S3Server, s3_uri: str, proxy: FaultProxy) -> tuple[ShardInfo, ...]:
    """Three shards in S3 of 200, 256 and 92 KB or so, whose reads go through the proxy."""
    os.environ["AWS_ENDPOINT_URL"] = s3_server.url
    put(shard_folder, s3_uri, manifest=True)
    os.environ["AWS_ENDPOINT_URL"] = proxy.url
    return load_manifest(s3_uri).shards


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def room_for(*shards: ShardInfo) -> int:
    return sum(shard.num_bytes for shard in shards)


def stored(cache: ShardCache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


def keys(*shards: ShardInfo) -> set[str]:
    return {shard_key(shard) for shard in shards}


def _require(folder: Path, shard: ShardInfo) -> None:
    descriptor = ShardCache(folder, 10**9).open(shard)
    os._exit(0 if os.fstat(descriptor).st_size == shard.num_bytes else 1)


def test_one_download_however_many_processes_ask(
    shards: tuple[ShardInfo, ...], proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.fault = lambda request: "slow"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_require, args=(tmp_path, shards[0])) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert proxy.whole("part-000000") == 1
    assert (tmp_path / f"{shard_key(shards[0])}.tar").read_bytes() == s3.read(shards[0].url)
    assert not list(tmp_path.glob("*.part"))


def test_the_shard_with_the_farthest_next_use_goes_first(shards: tuple[ShardInfo, ...], tmp_path: Path) -> None:
    first, second, third = shards
    cache = ShardCache(tmp_path, room_for(first, second))
    for shard in (first, second):
        assert cache.fetch(shard) is Fetched.PRESENT
    uses = {shard_key(first): 900, shard_key(second): 300}
    assert cache.fetch(third, next_use=2000, uses=lambda: uses) is Fetched.NO_ROOM
    assert cache.fetch(third, next_use=500, uses=lambda: uses) is Fetched.PRESENT
    assert stored(cache) == keys(second, third)
    assert cache.used_bytes() <= cache.limit_bytes
    # What nobody plans to use goes before all that somebody does.
    assert cache.fetch(first, next_use=700, uses=lambda: {shard_key(third): 600}) is Fetched.PRESENT
    assert stored(cache) == keys(first, third)


def test_what_a_living_job_needs_sooner_is_not_evicted_by_another(
    shards: tuple[ShardInfo, ...], tmp_path: Path
) -> None:
    first, second, third = shards
    cache = ShardCache(tmp_path, room_for(first, second))
    for shard in (first, second):
        cache.fetch(shard)
    with PublishedPlan(tmp_path) as theirs:
        theirs.write({shard_key(first): 10, shard_key(second): 20})
        ours = PublishedPlan(tmp_path)
        assert cache.fetch(third, next_use=30, uses=ours.merged) is Fetched.NO_ROOM
    assert cache.fetch(third, next_use=30, uses=ours.merged) is Fetched.PRESENT


def test_a_killed_download_is_taken_over(shards: tuple[ShardInfo, ...], proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.fault = lambda request: "stuck" if request.size > 40_000 else ""
    process = multiprocessing.get_context("fork").Process(target=_require, args=(tmp_path, shards[0]))
    process.start()
    wait_until(lambda: proxy.whole("part-000000"))
    cache = ShardCache(tmp_path, room_for(shards[0]) + 10)
    assert cache.fetch(shards[0]) is Fetched.ELSEWHERE
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.glob("*.part"))
    proxy.fault = lambda request: ""
    proxy.released.set()
    assert cache.fetch(shards[2]) is Fetched.PRESENT  # what the dead process left does not count
    assert not list(tmp_path.glob("*.part"))
    assert cache.fetch(shards[0]) is Fetched.PRESENT
    path = cache.find(shards[0])
    assert path is not None
    assert path.read_bytes() == s3.read(shards[0].url)


def test_a_full_disk_and_a_limit_too_small_are_clear(
    shards: tuple[ShardInfo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"data\.cache_gb is 0\.0001, but s3://.*part-000001\.tar has .* GB; raise it"):
        ShardCache(tmp_path, 100_000).check_room(shards)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir .*file/x: Not a directory"):
        ShardCache(tmp_path / "file" / "x", 10**9)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"data\.cache_dir .*: the disk is full: [\d.]+ MB free.*data\.cache_dir=none"):
        ShardCache(tmp_path, 10**9).fetch(shards[0])
    assert not list(tmp_path.glob("*.part"))


def data(uri: str, cache: Path | str, **changes: Any) -> DataConfig:
    values = {"num_lanes": 4, "block_size": 8, "window_blocks": 2, "loader_workers": 0, "cache_dir": str(cache)}
    return DataConfig(train=uri, val=uri, **(values | changes))


def test_shards_of_this_machine_need_no_cache_that_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = write_shards(tmp_path / "shards", [8])
    config = data(str(folder), tmp_path / "file" / "cache")
    (batch,) = build_eval_loader(config, image_size=32, batch_size=8, rank=0, world_size=1)
    assert len(batch.labels) == 8


def first_batch(config: DataConfig) -> float:
    """Seconds until the first batch."""
    start = time.monotonic()
    loader = train_batches(config, batch_size=16, stop=64)
    next(iter(loader))
    return time.monotonic() - start


def test_the_first_batch_does_not_wait_for_whole_shards(
    shards: tuple[ShardInfo, ...], s3_uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.fault = lambda request: "stuck" if request.size > 40_000 else ""
    assert first_batch(data(s3_uri, tmp_path)) < 5
    assert not list(tmp_path.glob("*.tar"))


def test_the_cache_is_filled_ahead_and_shared_with_the_next_run(
    shards: tuple[ShardInfo, ...], s3_uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    config = data(s3_uri, tmp_path)
    for _ in build_eval_loader(config, image_size=32, batch_size=8, rank=0, world_size=1):
        time.sleep(0.02)
    wait_until(lambda: len(list(tmp_path.glob("*.tar"))) == 3)
    assert [proxy.whole(f"part-{number:06d}") for number in range(3)] == [1, 1, 1]
    before = len(proxy.requests)
    # Another process reads the listing, the manifest and the index only.
    again = build_eval_loader(
        data(s3_uri, tmp_path, loader_workers=1), image_size=32, batch_size=8, rank=0, world_size=1
    )
    assert sum(len(batch.labels) for batch in again) == 137
    assert not [request for request in proxy.requests[before:] if "part-" in request.path and "?" not in request.path]


def test_a_reader_lets_go_of_evicted_shards(shards: tuple[ShardInfo, ...], s3_uri: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10**9)
    assert cache.fetch(shards[0]) is Fetched.PRESENT
    path = cache.find(shards[0])
    assert path is not None
    reader = SampleReader(load_manifest(s3_uri), cache)
    sample = next(reader.read_each([3]))
    assert len(reader._open) == 1
    path.unlink()
    assert reader.read(3) == sample
    assert next(reader.read_each([3])) == sample
    assert not reader._open


def hostile_tar(path: Path, outside: Path) -> None:
    """Members that would leave the folder they are unpacked into, links and a device, around two real samples."""
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))

        for number, name in enumerate((f"../../{outside.name}/a", f"{outside}/b")):
            add(f"{name}.png", png(image_of(0, number)))
            add(f"{name}.cls", str(number).encode())
        add("c.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("d.png", type=tarfile.LNKTYPE, linkname="../../secret")
        add("e.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)


@pytest.mark.parametrize("packed", [False, True])
def test_names_links_and_devices_lead_nowhere(tmp_path: Path, packed: bool, s3_uri: str) -> None:
    folder, outside = tmp_path / "shards", tmp_path / "outside"
    folder.mkdir()
    hostile_tar(folder / "x.tar", outside)
    if packed:
        (folder / "x.tar.gz").write_bytes(gzip.compress((folder / "x.tar").read_bytes()))
        (folder / "x.tar").unlink()
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    put_all(folder, s3_uri)
    assert index([s3_uri]) == 0
    batches = list(
        build_eval_loader(data(s3_uri, tmp_path / "cache"), image_size=32, batch_size=8, rank=0, world_size=1)
    )
    assert batches[0].labels.tolist() == [0, 1]
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.relative_to(tmp_path).parts} == before
    assert all(path.suffix in ("", ".tar", ".lock", ".part") for path in (tmp_path / "cache").rglob("*"))


def put_all(folder: Path, uri: str) -> None:
    for path in folder.iterdir():
        s3.upload(f"{uri}/{path.name}", path)


def test_compressed_shards_are_unpacked_once_and_need_a_cache(tmp_path: Path) -> None:
    plain = write_shards(tmp_path / "plain", [20, 17])
    folder = tmp_path / "packed"
    folder.mkdir()
    for path in plain.glob("*.tar"):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert index([str(folder), "--classes", str(plain / "manifest.json")]) == 0
    config = data(str(folder), tmp_path / "cache")

    def labels(config: DataConfig) -> list[int]:
        loader = build_eval_loader(config, image_size=32, batch_size=8, rank=0, world_size=1)
        return [label for batch in loader for label in batch.labels.tolist()]

    assert labels(config) == labels(data(str(plain), "none")) == [number % 4 for number in range(37)]
    times = [path.stat().st_ino for path in sorted((tmp_path / "cache").glob("*.tar"))]
    assert labels(config) == labels(data(str(plain), "none"))
    assert [path.stat().st_ino for path in sorted((tmp_path / "cache").glob("*.tar"))] == times
    small = replace(config, cache_gb=1e-6)
    for refused, message in (
        (data(str(folder), "none"), r"name a data\.cache_dir"),
        (small, r"cache_gb is 1e-06, but"),
    ):
        with pytest.raises(DataError, match=message):
            labels(refused)
        with pytest.raises(DataError, match=message):  # on the driver, before a worker starts
            check_data(refused, batch_sizes=[16], worker_counts=[1])

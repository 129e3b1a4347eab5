"""S3 that fails: a server killed and started again, errors, slow answers, cut bodies. Every sample arrives once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader
from datasets.shards.indexing import IndexRules, index_shards
from tests.support.batches import train_batches
from tests.support.fault_proxy import FaultProxy, Request, fault_proxy
from tests.support.s3 import put
from tests.support.servers import S3Server
from tests.support.tars import tar_bytes

FAULTS = ("", "", "500", "", "cut", "", "", "503", "", "slow", "")


@pytest.fixture
def proxied(
    shard_folder: Path, s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FaultProxy, str]]:
    put(shard_folder, s3_uri, manifest=True)
    with fault_proxy(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy, s3_uri


def config(uri: str, cache: Path | str, **changes: object) -> DataConfig:
    base = DataConfig(train=uri, val=uri, num_lanes=4, block_size=8, window_blocks=2, cache_dir=str(cache))
    return replace(base, loader_workers=1, **changes)  # type: ignore[arg-type]


def load(data: DataConfig, *, rank: int = 0, world_size: int = 1, pause_s: float = 0.0) -> list[Batch]:
    batches = []
    loader = train_batches(data, magnitude=4, seed=5, stop=136, rank=rank, world_size=world_size)
    for batch in loader:
        batches.append(batch)
        time.sleep(pause_s)
    return batches


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.stream_index, b.stream_index)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("cached", [False, True])
def test_errors_slow_answers_and_cut_bodies_change_nothing(
    proxied: tuple[FaultProxy, str], shard_folder: Path, tmp_path: Path, cached: bool
) -> None:
    proxy, uri = proxied
    expected = load(config(str(shard_folder), "none"))
    proxy.fault = lambda request: FAULTS[request.number % len(FAULTS)]
    got = load(config(uri, tmp_path if cached else "none"))
    assert same(got, expected)
    assert len(proxy.requests) > (8 if cached else 60)  # a filled cache asks little


def test_a_server_killed_and_started_again_costs_nothing_but_time(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path / "server")
    server.start()
    try:
        for name, value in server.client_environment().items():
            monkeypatch.setenv(name, value)
        uri = put(shard_folder, f"s3://{server.bucket}/data", manifest=True)
        data = config(uri, "none", prefetch_batches=1)
        expected = load(config(str(shard_folder), "none"))

        def restart() -> None:
            time.sleep(0.7)
            server.kill()
            time.sleep(1.5)
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        got = load(data, pause_s=0.15)
        thread.join()
        assert same(got, expected)
    finally:
        server.stop()


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_workers_sees_the_same_samples_through_faults(
    proxied: tuple[FaultProxy, str], shard_folder: Path, tmp_path: Path, world_size: int
) -> None:
    proxy, uri = proxied
    alone = load(config(str(shard_folder), "none"))
    proxy.fault = lambda request: "cut" if request.number % 5 == 2 else ""
    ranks = [load(config(uri, tmp_path), rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        assert torch.equal(whole.images, torch.cat([batches[step].images for batches in ranks]))
    seen = sorted(index for batches in ranks for batch in batches for index in batch.stream_index.tolist())
    assert seen == list(range(136))


def test_evaluation_through_faults_sees_every_sample_once(proxied: tuple[FaultProxy, str]) -> None:
    proxy, uri = proxied
    proxy.fault = lambda request: FAULTS[request.number % len(FAULTS)]
    batches = list(build_eval_loader(config(uri, "none"), image_size=32, batch_size=16, rank=0, world_size=1))
    assert [index for batch in batches for index in batch.stream_index.tolist()] == list(range(137))


def test_what_never_answers_ends_with_one_line_when_patience_is_over(
    proxied: tuple[FaultProxy, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, uri = proxied
    monkeypatch.setattr("infra.storage.s3.SAY_AFTER_S", 0.0)

    def always(request: Request) -> str:
        return "503"

    proxy.fault = always
    with pytest.raises(DataError, match=r"cannot read .*part-000000\.tar: the server answers SlowDown") as caught:
        s3.read(
            f"{uri}/part-000000.tar", length=10, patience_s=4.0
        )  # a request that is tried twice may take over a second
    assert "\n" not in str(caught.value)
    assert any("retrying for up to 4 s" in record.message for record in caplog.records)


def test_small_images_are_indexed_by_a_request_a_megabyte(proxied: tuple[FaultProxy, str], tmp_path: Path) -> None:
    proxy, uri = proxied
    members = [
        (f"{number:03}.{kind}", data) for number in range(40) for kind, data in (("jpg", bytes(50_000)), ("cls", b"1"))
    ]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(tar_bytes(members))
    put(tmp_path / "shards", f"{uri}/small")
    proxy.requests.clear()
    assert index_shards(f"{uri}/small", f"{uri}/small", IndexRules()).num_samples == 40
    asked = [request for request in proxy.requests if request.path.endswith("a.tar") and request.method == "GET"]
    assert len(asked) <= 4  # of 2 MB, and one for the first image

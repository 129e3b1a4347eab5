"""Shards in a real S3 server: indexing, reading with and without the node's cache, and what can't be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import webdataset as wds

from datasets.checks import check_data
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader
from datasets.shards.manifest import MANIFEST_NAME, read_manifest
from datasets.shards.resolve import load_manifest
from jobs.index import main as index
from tests.support.batches import train_batches
from tests.support.commands import prepare
from tests.support.s3 import put


@pytest.fixture
def s3_shards(shard_folder: Path, s3_uri: str) -> str:
    """The three shards of `shard_folder` with their index, in S3."""
    return put(shard_folder, s3_uri, manifest=True)


def config(train: str, cache: Path | str, **changes: Any) -> DataConfig:
    values = {"num_lanes": 4, "block_size": 8, "window_blocks": 2, "loader_workers": 0, "cache_dir": str(cache)}
    return DataConfig(train=train, val=train, **(values | changes))


def load(config: DataConfig, **changes: Any) -> list[Batch]:
    return list(train_batches(config, **{"batch_size": 16, "magnitude": 5.0, "seed": 5, "stop": 128, **changes}))


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_from_s3_as_from_disk_with_and_without_a_cache(
    shard_folder: Path, s3_shards: str, tmp_path: Path, workers: int
) -> None:
    local = load(config(str(shard_folder), tmp_path / "unused"))
    for cache in (tmp_path / "cache", tmp_path / "cache", "none"):
        assert same(local, load(config(s3_shards, cache, loader_workers=workers)))
    assert not (tmp_path / "unused").exists() or not list((tmp_path / "unused").glob("*.tar"))


def test_the_order_does_not_depend_on_where_the_shards_are(shard_folder: Path, s3_shards: str) -> None:
    there, here = load_manifest(f"{s3_shards}/"), load_manifest(str(shard_folder))
    assert there.fingerprint == here.fingerprint
    assert all(shard.etag for shard in there.shards)
    part = load_manifest(f"{s3_shards}/part-{{000001..000002}}.tar::{s3_shards}/part-000000.tar")
    assert part.shard_counts.tolist() == [64, 23, 50]


def test_indexing_in_s3_finds_what_indexing_the_files_finds(
    shard_folder: Path, s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(shard_folder, s3_uri)
    with pytest.raises(DataError, match=r"manifest\.json: the shards have no manifest .*jobs\.index"):
        load_manifest(s3_uri)
    names = tmp_path / "names.txt"
    names.write_text("class 0\nclass 1\nclass 2\nclass 3\n")
    assert index([s3_uri, "--classes", str(names), "--wids", str(tmp_path / "wids.json")]) == 0
    assert "137 images of 4 classes in 3 shards" in capsys.readouterr().out
    assert load_manifest(s3_uri).fingerprint == load_manifest(str(shard_folder)).fingerprint
    assert same(load(config(s3_uri, "none")), load(config(str(shard_folder), "none")))
    listed = json.loads((tmp_path / "wids.json").read_text())
    assert listed["__kind__"] == "wids-shard-index-v1"
    assert [(row["url"], row["nsamples"]) for row in listed["shardlist"]][1] == (f"{s3_uri}/part-000001.tar", 64)


def test_an_index_elsewhere_stands_for_shards_that_cannot_be_written_beside(
    shard_folder: Path, s3_uri: str, tmp_path: Path
) -> None:
    put(shard_folder, s3_uri)
    assert index([s3_uri, "--out", str(tmp_path / "index")]) == 0
    name = read_manifest(tmp_path / "index").shards[0].index_name
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [name, MANIFEST_NAME]
    assert same(load(config(str(tmp_path / "index"), tmp_path / "c")), load(config(str(shard_folder), "none")))


def test_a_shard_that_changed_since_its_index_is_refused_with_its_name(s3_shards: str, s3_uri: str) -> None:
    assert index([s3_uri]) == 0
    content = s3.read(f"{s3_shards}/part-000001.tar")
    s3.write(f"{s3_shards}/part-000001.tar", content[:-600] + b"x" + content[-599:])
    with pytest.raises(DataError, match=r"part-000001\.tar: its ETag is .* changed since; run .*jobs\.index"):
        load_manifest(s3_shards)
    s3.write(f"{s3_shards}/part-000001.tar", content + bytes(512))
    with pytest.raises(DataError, match=r"part-000001\.tar: .*changed since"):
        load_manifest(s3_shards)


def test_a_shard_that_changes_during_the_run_is_refused_too(s3_shards: str) -> None:
    loader = build_eval_loader(config(s3_shards, "none"), image_size=32, batch_size=50, rank=0, world_size=1)
    shard = f"{s3_shards}/part-000000.tar"
    s3.write(shard, s3.read(shard)[::-1])
    with pytest.raises(DataError, match=r"part-000000\.tar: its ETag is .*changed since"):
        list(loader)
    s3.write(shard, b"other")
    with pytest.raises(DataError, match=r"part-000000\.tar: .*shorter than its index says: changed since"):
        list(loader)


def test_a_manifest_that_was_read_before_is_neither_read_nor_listed_again(
    s3_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    real = s3.list_folder
    manifest = load_manifest(s3_shards)
    s3.delete(f"{s3_shards}/{MANIFEST_NAME}")
    monkeypatch.setattr(s3, "list_folder", lambda url, **options: listed.append(url) or real(url, **options))
    for size in (16, 32):
        load(config(s3_shards, tmp_path), image_size=size, stop=16, manifest=manifest)
        whole = {"batch_size": 100, "rank": 0, "world_size": 1, "manifest": manifest}
        list(build_eval_loader(config(s3_shards, tmp_path), image_size=size, **whole))
    assert listed == []


def test_errors_are_one_line_and_hold_no_secret(s3_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config("s3://no-such-bucket-here/x", "none")
    with pytest.raises(DataError, match=r"cannot list s3://no-such-bucket-here/x: the bucket does not exist"):
        check_data(data, batch_sizes=[16], worker_counts=[1])
    with pytest.raises(DataError, match=r"holds no \.tar shard"):
        load_manifest(f"{s3_shards}/nothing")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    with pytest.raises(DataError, match=r"cannot list s3://") as caught:
        load_manifest(s3_shards)
    assert "very-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(s3, "CHECK_PATIENCE_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:pass-word@127.0.0.1:9")
    with pytest.raises(
        DataError, match=r"no answer from http://127.*; check the network and AWS_ENDPOINT_URL"
    ) as caught:
        s3.list_folder(s3_shards, patience_s=0.5)
    assert "pass-word" not in str(caught.value)


def test_webdataset_reads_what_we_index(shard_folder: Path) -> None:
    keys = [sample["__key__"] for sample in wds.WebDataset(str(shard_folder / "part-000000.tar"), shardshuffle=False)]
    assert len(keys) == load_manifest(str(shard_folder)).shards[0].samples


def test_check_data_over_s3(s3_shards: str) -> None:
    train, _ = check_data(config(s3_shards, "none"), batch_sizes=[16], worker_counts=[1, 2, 4])
    assert train.num_samples == 137
    with pytest.raises(DataError, match=r"data\.train_weights has 2 numbers for 1 parts"):
        check_data(replace(config(s3_shards, "none"), train_weights=(1.0, 2.0)), batch_sizes=[16], worker_counts=[1])


def test_a_bucket_that_cannot_be_written_is_said_before_the_work(
    s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    client = boto3.client("s3")
    client.create_bucket(Bucket="read-only")
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::read-only/*"}
    client.put_bucket_policy(Bucket="read-only", Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    message = "access is denied; the credentials need s3:PutObject"
    with pytest.raises(DataError, match=f"cannot write s3://read-only/file: {message}"):
        s3.upload("s3://read-only/file", tmp_path / "file")
    assert prepare(["image-folder", str(tmp_path / "none"), "--out", "s3://read-only/set"]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(DataError, match=f"{message}; name another folder with --out"):
        index([str(tmp_path / "none"), "--out", "s3://read-only/set"])

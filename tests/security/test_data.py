"""Data sets that carry a pickle run nothing. The test of tar members is in tests/datasets/cache/test_shard_cache.py."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.cache.shard_cache import ShardCache, shard_key
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.loader import build_eval_loader
from datasets.prepare.pyramid import write_copies
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.resolve import load_manifest
from infra.storage.base import StorageError
from tests.support.s3 import put
from tests.support.shards import write_shards


@pytest.mark.parametrize("name", ["index-*.npy", "manifest.json"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_data_set_with_a_pickle_beside_its_shards_is_refused(
    tmp_path: Path, evil: bytes, s3_uri: str, place: str, name: str
) -> None:
    folder = write_shards(tmp_path / "shards", [12])
    (file,) = folder.glob(name)
    file.write_bytes(evil)
    if place == "s3":
        for path in folder.iterdir():
            s3.upload(f"{s3_uri}/{path.name}", path)
    url = str(folder) if place == "local" else s3_uri
    with pytest.raises(DataError, match=file.name):
        _batches(DataConfig(train=url, val=url, cache_dir="none"))


def test_a_member_with_a_pickle_is_not_opened(tmp_path: Path, evil: bytes) -> None:
    """The `webdataset` package would unpickle what is named .pyd, .pickle or .pth."""
    beside = {f"0000000{number}.{kind}": evil for number, kind in ((3, "pyd"), (4, "pickle"), (5, "pth"))}
    index_shards(*with_members(tmp_path / "beside", beside), IndexRules())
    assert _evaluated(tmp_path / "beside") == 8
    write_copies(tmp_path / "beside", [32], workers=1)
    index_shards(*with_members(tmp_path / "image", {"00000003.jpg": evil}), IndexRules())
    assert _evaluated(tmp_path / "image") == 7  # left out, and counted
    with pytest.raises(DataError, match="not a class number"):
        index_shards(*with_members(tmp_path / "label", {"00000003.cls": evil}), IndexRules())


def with_members(folder: Path, others: dict[str, bytes]) -> tuple[str, str]:
    """Write a shard of 8 images that has these members too, or in place of its own; return its URL and its folder."""
    write_shards(folder, [8])
    with tarfile.open(folder / "part-000000.tar") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    members |= others
    with tarfile.open(folder / "part-000000.tar", "w") as tar:
        for member, content in sorted(members.items()):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(folder), str(folder)


def _evaluated(folder: Path) -> int:
    return _batches(DataConfig(train=str(folder), val=str(folder), cache_dir="none"))


def test_a_shard_in_the_cache_that_is_a_pickle_is_not_opened(tmp_path: Path, evil: bytes, s3_uri: str) -> None:
    folder = write_shards(tmp_path / "shards", [8])
    put(folder, s3_uri, manifest=True)
    cache = ShardCache(tmp_path / "cache", 10**9)
    (shard,) = load_manifest(s3_uri).shards
    (tmp_path / "cache" / f"{shard_key(shard)}.tar").write_bytes(evil)
    assert cache.find(shard) is not None
    with pytest.raises((DataError, StorageError)) as error:
        _batches(DataConfig(train=s3_uri, val=s3_uri, cache_dir=str(tmp_path / "cache")))
    assert "\n" not in str(error.value)


def _batches(config: DataConfig) -> int:
    """Return how many samples an evaluation sees."""
    config = replace(config, loader_workers=0)
    loader = build_eval_loader(config, image_size=32, batch_size=4, rank=0, world_size=1)
    return sum(len(batch.stream_index) for batch in loader)

"""Data sets that carry a pickle run nothing. The test of tar members is in tests/datasets/cache/test_shard_cache.py."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from datasets.cache.shard_cache import ShardCache, shard_key
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.loader import build_eval_loader
from datasets.prepare.pyramid import write_copies
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


@pytest.mark.parametrize("name", ["00000003.jpg", "00000003.cls", "00000003.pyd", "00000003.pickle", "00000003.pth"])
def test_a_member_with_a_pickle_is_not_opened(tmp_path: Path, evil: bytes, name: str) -> None:
    """The `webdataset` package would unpickle what is named .pyd, .pickle or .pth."""
    folder = write_shards(tmp_path / "shards", [8])
    with tarfile.open(folder / "part-000000.tar") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    members[name] = evil
    with tarfile.open(folder / "part-000000.tar", "w") as tar:
        for member, content in sorted(members.items()):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    from datasets.shards.indexing import IndexRules, index_shards

    if name.endswith(".cls"):  # its label is no number
        with pytest.raises(DataError, match="not a class number"):
            index_shards(str(folder), str(folder), IndexRules())
        return
    index_shards(str(folder), str(folder), IndexRules())
    damaged = name.endswith(".jpg")  # left out of an evaluation, and counted
    assert _batches(DataConfig(train=str(folder), val=str(folder), cache_dir="none")) == 8 - damaged
    if not damaged:
        write_copies(folder, [32], workers=1)


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
    loader = build_eval_loader(config, image_size=32, batch_size=4, rank=0, world_size=1)
    return sum(len(batch.stream_index) for batch in loader)

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.files import s3
from datasets.prepare.publish import upload_folder
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.manifest import ConflictError
from datasets.shards.resolve import load_manifest


def test_a_manifest_that_somebody_wrote_during_the_upload_stays(
    shard_folder: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_folder(shard_folder, f"{s3_uri}/set")
    assert load_manifest(f"{s3_uri}/set").fingerprint == load_manifest(str(shard_folder)).fingerprint
    real = s3.upload

    def upload_and_index(url: str, path: Path) -> None:
        real(url, path)
        if path.name == "part-000002.tar":
            index_shards(f"{s3_uri}/set/part-000001.tar", f"{s3_uri}/set", IndexRules())

    monkeypatch.setattr(s3, "upload", upload_and_index)
    with pytest.raises(ConflictError, match=r"/set/manifest\.json: another command wrote it"):
        upload_folder(shard_folder, f"{s3_uri}/set")
    assert load_manifest(f"{s3_uri}/set/part-000001.tar").num_samples == 64

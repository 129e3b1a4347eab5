"""An indexing that ended early continues: what it has read is not read again, unless the shard is another one now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.shards import scan_log
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.manifest import read_manifest
from datasets.shards.scan_log import ScanLog
from datasets.shards.tar_index import ShardIndex, scan_shard
from tests.support.shards import image_of, png, write_tar

IMAGE = png(image_of(1, 0))
KINDS: list[dict[str, bytes]] = [
    {"a.png": IMAGE, "a.cls": b"3", "b.png": IMAGE},
    {"c.png": IMAGE, "c.txt": b"cat", "d.png": IMAGE, "d.json": b'{"label": "dog"}', "e.png": IMAGE, "e.cls": b"1"},
    {"f.png": IMAGE, "f.labels": b"1 4", "g.png": IMAGE, "g.labels": b"", "g.note": b"x"},
    {"h.png": IMAGE, "h.targets": b"0.1 -3", "i.png": IMAGE, "i.targets": b"2 1e-9"},
    {"j.png": IMAGE, "j.mask.png": IMAGE, "README": b"what this is"},
    {},
]
"""Members of a shard of each kind of labels, and of an empty one."""


@pytest.fixture(autouse=True)
def _written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_log, "WRITE_EVERY_S", 0.0)


def shard(folder: Path, number: int, members: dict[str, bytes]) -> RemoteFile:
    path = folder / f"{number:03}.tar"
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(path, members)
    return RemoteFile(str(path), path.stat().st_size, "")


def logged(folder: Path, *scans: tuple[RemoteFile, ShardIndex]) -> ScanLog:
    log = ScanLog(str(folder), [file for file, _ in scans], "label")
    for file, scan in scans:
        log.add(file.url, scan)
    return log


def values(scan: ShardIndex) -> Iterator[object]:
    for value in scan:
        yield (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else value


def test_scans_of_every_kind_are_read_as_they_were_written(tmp_path: Path) -> None:
    files = [shard(tmp_path, number, members) for number, members in enumerate(KINDS)]
    scans = [scan_shard(file) for file in files]
    assert [len(scan.rows) for scan in scans] == [2, 3, 2, 2, 1, 0]
    logged(tmp_path, *zip(files, scans, strict=True))
    found = ScanLog(str(tmp_path), files, "label").read()
    assert [list(values(found[file.url])) for file in files] == [list(values(scan)) for scan in scans]


def test_several_scans_in_one_file_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_log, "WRITE_EVERY_S", 3600.0)
    files = [shard(tmp_path, number, members) for number, members in enumerate(KINDS)]
    scans = [scan_shard(file) for file in files]
    log = ScanLog(str(tmp_path), files, "label")
    for file, scan in zip(files[:-1], scans[:-1], strict=True):
        log.add(file.url, scan)
    assert not list(tmp_path.glob("scanned-*"))
    monkeypatch.setattr(scan_log, "WRITE_EVERY_S", 0.0)
    log.add(files[-1].url, scans[-1])
    assert [path.name for path in tmp_path.glob("scanned-*")] == ["scanned-00000.npz"]
    found = ScanLog(str(tmp_path), files, "label").read()
    assert [list(values(found[file.url])) for file in files] == [list(values(scan)) for scan in scans]


def test_a_shard_that_was_written_again_and_another_field_are_read_again(tmp_path: Path) -> None:
    files = [shard(tmp_path, number, {f"{number}.png": IMAGE}) for number in range(2)]
    logged(tmp_path, *((file, scan_shard(file)) for file in files))
    assert not ScanLog(str(tmp_path), files, "caption").read()
    files[0] = shard(tmp_path, 0, {"new.png": IMAGE})
    assert ScanLog(str(tmp_path), files, "label").read().keys() == {files[1].url}


def test_a_damaged_file_costs_its_shards(tmp_path: Path) -> None:
    files = [shard(tmp_path, number, {f"{number}.png": IMAGE}) for number in range(3)]
    logged(tmp_path, *((file, scan_shard(file)) for file in files))
    damaged = tmp_path / "scanned-00001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert ScanLog(str(tmp_path), files, "label").read().keys() == {files[0].url, files[2].url}


def test_an_indexing_that_failed_reads_on_where_it_was(tmp_path: Path) -> None:
    names = [{f"{number}.png": IMAGE, f"{number}.txt": b"cat" if number % 2 else b"dog"} for number in range(4)]
    for number in range(3):
        shard(tmp_path / "data", number, names[number])
    (tmp_path / "data" / "003.tar").write_bytes(b"no tar" * 1000)
    done: list[int] = []

    def run(folder: str) -> None:
        done.clear()
        rules = IndexRules(workers=1)
        index_shards(
            str(tmp_path / "data"), str(tmp_path / folder), rules, progress=lambda number, _: done.append(number)
        )

    with pytest.raises(DataError, match=r"003\.tar: not a readable tar"):
        run("index")
    assert done == [1, 2, 3]
    shard(tmp_path / "data", 3, names[3])
    run("index")
    assert done == [4]
    assert not list((tmp_path / "index").glob("scanned-*"))
    run("fresh")
    assert done == [1, 2, 3, 4]
    assert read_manifest(tmp_path / "index").fingerprint == read_manifest(tmp_path / "fresh").fingerprint
    index, fresh = (np.load(read_manifest(tmp_path / name).shards[0].index_url) for name in ("index", "fresh"))
    assert index.tolist() == fresh.tolist()
    assert index["label"].tolist() == [1, 0, 1, 0]

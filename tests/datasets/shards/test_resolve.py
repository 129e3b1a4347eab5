from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from datasets.errors import DataError
from datasets.loading.reader import SampleReader
from datasets.shards.describe import write_manifest
from datasets.shards.manifest import MANIFEST_NAME
from datasets.shards.resolve import expand_urls, load_manifest
from datasets.shards.tar_index import index_shard
from tests.support.shards import write_shards, write_tar


def names(urls: list[str]) -> list[str]:
    return [Path(url).name for url in urls]


def test_folders_brace_lists_and_joined_lists(shard_folder: Path) -> None:
    every = [f"part-{number:06d}.tar" for number in range(3)]
    assert names(expand_urls(str(shard_folder))) == every
    assert names(expand_urls(f"{shard_folder}/part-{{000000..000001}}.tar")) == every[:2]
    assert names(expand_urls(f"{shard_folder}/part-000002.tar::{shard_folder}/part-000000.tar")) == [every[2], every[0]]


def test_the_manifest_counts_what_is_there(shard_folder: Path) -> None:
    manifest = load_manifest(str(shard_folder))
    assert manifest.shard_counts.tolist() == [50, 64, 23]
    assert manifest.num_samples == 137
    assert manifest.classes == ("class 0", "class 1", "class 2", "class 3")
    assert manifest.class_counts == (35, 34, 34, 34)
    assert {(shard.labelled == shard.samples, shard.max_label) for shard in manifest.shards} == {(True, 3)}


def test_a_part_of_the_shards_is_a_dataset_too(shard_folder: Path) -> None:
    part = load_manifest(f"{shard_folder}/part-{{000001..000002}}.tar")
    assert part.shard_counts.tolist() == [64, 23]
    assert part.class_counts == ()
    whole, some = SampleReader(load_manifest(str(shard_folder))), SampleReader(part)
    assert some.read(0) == whole.read(50)
    assert some.read(86) == whole.read(136)


def test_the_fingerprint_follows_the_data_and_not_the_folder(shard_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(shard_folder, tmp_path / "moved")
    prints = {load_manifest(str(folder)).fingerprint for folder in (shard_folder, moved)}
    assert len(prints) == 1
    assert load_manifest(f"{shard_folder}/part-000000.tar").fingerprint not in prints
    (moved / "part-000002.tar").unlink()
    write_manifest(moved, ["part-000000.tar", "part-000001.tar"], classes=["a"])
    assert load_manifest(str(moved)).fingerprint not in prints


def test_a_local_shard_that_changed_at_equal_size_is_refused_and_a_copy_is_not(
    shard_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shard_folder, moved, copy_function=shutil.copyfile)  # without the files' times
    assert load_manifest(str(moved)).fingerprint == load_manifest(str(shard_folder)).fingerprint
    shard = moved / "part-000001.tar"
    data = shard.read_bytes()
    sample = data.index(b"\xff\xd8\xff")
    shard.write_bytes(data[:sample] + data[sample + 512 :] + data[sample : sample + 512])
    with pytest.raises(DataError, match=r"part-000001\.tar: its time or content is not what .*changed since"):
        load_manifest(str(moved))
    shard.write_bytes(data)
    assert load_manifest(str(moved)).num_samples == 137
    write_manifest(moved, [f"part-{number:06d}.tar" for number in range(3)], classes=["a"])
    with shard.open("r+b") as file:  # of the file that was indexed one byte is enough
        file.seek(sample + 600)
        file.write(bytes([data[sample + 600] ^ 1]))
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))  # the clock of the file system may be coarse
    with pytest.raises(DataError, match=r"part-000001\.tar: its time or content is not what .*changed since"):
        load_manifest(str(moved))
    write_manifest(moved, [f"part-{number:06d}.tar" for number in (0, 2)], classes=["a"])
    shard.unlink()
    assert load_manifest(str(moved)).num_samples == 73


def test_our_index_agrees_with_webdataset_and_its_reader(shard_folder: Path) -> None:
    reader = SampleReader(load_manifest(str(shard_folder)))
    urls = [shard.url for shard in reader.manifest.shards]
    theirs = list(wds.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == 137
    for sample_id, sample in enumerate(theirs):
        ours = reader.read(sample_id)
        assert (ours.data, ours.label) == (sample["jpg"], int(sample["cls"]))
        assert repr(sample["__key__"]) in reader.describe(sample_id)


def test_many_shards_with_few_open_files(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.loading.reader._OPEN_SHARDS", 1)
    reader = SampleReader(load_manifest(str(shard_folder)))
    labels = [reader.read(sample_id).label for sample_id in np.random.default_rng(0).permutation(137)[:40]]
    assert len(reader._open) == 1
    assert set(labels) == {0, 1, 2, 3}
    reader.close()


def test_keys_with_dots_in_folders_other_members_and_long_names(tmp_path: Path) -> None:
    long = "v1.2/" + "k" * 150
    members = {
        "v1.2/a.jpg": b"AAAA",
        "v1.2/a.cls": b"3",
        "v1.2/b.json": b"{}",
        "v1.2/b.JPEG": b"BB",
        "v1.2/b.cls": b" 1\n",
        f"{long}.png": b"C",
        f"{long}.cls": b"0",
    }
    path = write_tar(tmp_path / "x.tar", members)
    index = index_shard(path)
    data = path.read_bytes()
    assert [data[row["offset"] : row["offset"] + row["size"]] for row in index] == [b"AAAA", b"BB", b"C"]
    assert index["label"].tolist() == [3, 1, 0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.cls": b"1"}, "'a' has no image"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "label of sample 'a' is b'cat', not a class number"),
        ({"a.jpg": b"x", "a.cls": b"-2"}, "label of sample 'a' is -2"),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        index_shard(write_tar(tmp_path / "x.tar", members))


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(DataError, match=r"x\.tar: not a readable tar"):
        index_shard(tmp_path / "x.tar")


def test_missing_and_empty_data_say_how_to_make_it(tmp_path: Path, shard_folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such shard or folder; .*jobs\.prepare"):
        load_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no data given"):
        load_manifest("")
    with pytest.raises(DataError, match=r"holds no \.tar shard; .*jobs\.prepare"):
        load_manifest(str(tmp_path))
    shutil.copytree(shard_folder, tmp_path / "train")
    with pytest.raises(DataError, match=r"holds no \.tar shard; name one of its folders: train"):
        load_manifest(str(tmp_path))
    with pytest.raises(DataError, match="only shards on a local path or in s3"):
        load_manifest("https://bucket/x.tar")


def test_a_folder_that_does_not_fit_its_manifest_is_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", [5, 5])
    extra, second = folder / "part-000002.tar", folder / "part-000001.tar"
    shutil.copy(second, extra)
    with pytest.raises(DataError, match=r"part-000002\.tar: manifest\.json next to it does not list"):
        load_manifest(str(folder))
    extra.unlink()
    content = second.read_bytes()
    second.write_bytes(content + b"x" * 512)
    with pytest.raises(DataError, match=r"part-000001\.tar: .*changed since"):
        load_manifest(str(folder))
    second.unlink()
    with pytest.raises(DataError, match=r"lists part-000001\.tar, but there is no such file"):
        load_manifest(str(folder))


def test_a_missing_or_broken_manifest_or_index(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", [5])
    manifest, (index,) = folder / MANIFEST_NAME, folder.glob("index-*.npy")
    text = manifest.read_text()
    for broken in ("{", "[]", "{}", json.dumps({**json.loads(text), "shards": [{"name": "x"}]})):
        manifest.write_text(broken)
        with pytest.raises(DataError, match=r"manifest\.json: not a readable manifest"):
            load_manifest(str(folder))
    manifest.write_text(json.dumps({**json.loads(text), "version": 99}))
    with pytest.raises(DataError, match="version 99 is not known"):
        load_manifest(str(folder))
    manifest.unlink()
    with pytest.raises(DataError, match=r"no manifest .*jobs\.prepare"):
        load_manifest(str(folder))
    manifest.write_text(text)
    np.save(index, np.load(index)[:3])
    with pytest.raises(DataError, match="index of samples is shorter"):
        SampleReader(load_manifest(str(folder)))
    index.unlink()
    with pytest.raises(DataError, match=r"index-\w+\.npy: not a readable index"):
        SampleReader(load_manifest(str(folder)))


def test_a_shard_cut_short_after_the_start_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", [5])
    reader = SampleReader(load_manifest(str(folder)))
    with (folder / "part-000000.tar").open("r+b") as shard:
        shard.truncate(4096)
    with pytest.raises(DataError, match=r"part-000000\.tar: sample .*cut short"):
        reader.read(4)


def test_labels_and_places_are_in_the_fingerprint_and_an_old_manifest_keeps_its_own(tmp_path: Path) -> None:
    def fingerprint(**changes: object) -> str:
        manifest = load_manifest(str(folder))
        return replace(manifest, shards=tuple(replace(shard, **changes) for shard in manifest.shards)).fingerprint

    folder = write_shards(tmp_path / "data", [12, 8])
    assert len({fingerprint(), fingerprint(rows="other"), fingerprint(rows="")}) == 3
    shards = load_manifest(str(folder)).shards
    old = [
        "classification",
        [f"class {label}" for label in range(4)],
        [(s.name, s.samples, s.num_bytes) for s in shards],
    ]
    assert fingerprint(rows="") == hashlib.sha256(json.dumps(old).encode()).hexdigest()[:32]

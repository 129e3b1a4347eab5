"""Manifest and index are one pair: however readers and writers meet, nobody sees half of two."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.urls import join, read_file, tag_of, write_file
from datasets.loading.reader import SampleReader
from datasets.prepare import pyramid as pyramid_module
from datasets.prepare.pyramid import write_copies
from datasets.shards import index_rows, indexing
from datasets.shards import manifest as manifest_module
from datasets.shards.copies import load_copies
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.manifest import (
    MANIFEST_NAME,
    ConflictError,
    DatasetManifest,
    manifest_version,
    read_manifest,
    save_manifest,
)
from datasets.shards.resolve import load_manifest
from datasets.shards.tar_index import INDEX_NAME, ShardIndex, scan_shard
from tests.support.forked import ends_well, go_on, in_process, stop_here, wait_stopped
from tests.support.interleaved import Interleaving
from tests.support.s3 import put
from tests.support.shards import image_of, write_tar

pytestmark = pytest.mark.usefixtures("end_children")

COUNT = 12
LABELS = {"a": [number % 4 for number in range(COUNT)], "b": [3 - number % 4 for number in range(COUNT)]}


def write_shards_of_two_labels(folder: Path) -> Path:
    """Two shards whose samples have the labels `LABELS` in two JSON fields."""
    folder.mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(shard * 6, shard * 6 + 6):
            image = image_of(1, number, height=96, width=96)
            members[f"{number}.jpg"] = simplejpeg.encode_jpeg(image)
            members[f"{number}.json"] = json.dumps({field: LABELS[field][number] for field in "ab"}).encode()
        write_tar(folder / f"s-{shard}.tar", members)
    return folder


def index(place: str, field: str) -> DatasetManifest:
    return index_shards(place, place, IndexRules(json_field=field))


def labels_of(manifest: DatasetManifest) -> list[int]:
    reader = SampleReader(manifest)
    return [reader.read(number).label for number in range(manifest.num_samples)]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Folder or prefix of the shards, indexed by field `a`."""
    folder = write_shards_of_two_labels(tmp_path / "data")
    where = str(folder) if request.param == "local" else put(folder, request.getfixturevalue("s3_uri"))
    index(where, "a")
    return where


def test_an_index_is_named_by_its_content_and_stays_when_another_is_written(place: str) -> None:
    first = load_manifest(place)
    second = index(place, "b")
    assert first.shards[0].index_name != second.shards[0].index_name
    assert labels_of(first) == LABELS["a"]
    assert labels_of(load_manifest(place)) == LABELS["b"]
    assert index(place, "a").shards[0].index_name == first.shards[0].index_name


def test_a_set_from_before_is_read_and_gets_a_name_when_it_is_indexed_again(place: str) -> None:
    manifest = load_manifest(place)
    raw = json.loads(read_file(join(place, MANIFEST_NAME)))
    write_file(join(place, INDEX_NAME), read_file(join(place, raw.pop("index"))))
    write_file(join(place, MANIFEST_NAME), json.dumps(raw).encode())
    old = load_manifest(place)
    assert old.shards[0].index_url == join(place, INDEX_NAME)
    assert (old.fingerprint, labels_of(old)) == (manifest.fingerprint, LABELS["a"])
    index(place, "b")
    assert labels_of(old) == LABELS["a"]


def test_an_index_of_other_bytes_is_refused_with_the_cure(place: str) -> None:
    manifest = load_manifest(place)
    url = manifest.shards[0].index_url
    data = bytearray(read_file(url))
    data[-20] ^= 1  # in the last shard's rows
    write_file(url, bytes(data))
    reader = SampleReader(manifest)
    assert reader.read(3).label == 3
    with pytest.raises(DataError, match=r"index-\w+\.npy: its rows of s-1\.tar are not .*`python -m jobs\.index URL`"):
        reader.read(COUNT - 1)
    index(place, "a")
    assert labels_of(load_manifest(place)) == LABELS["a"]


@pytest.mark.parametrize("name", ["../index.npy", "/etc/passwd", "s3://other/index.npy", "index-x.npy", "", 7])
def test_a_manifest_names_no_index_but_one_of_its_folder(tmp_path: Path, name: object) -> None:
    folder = write_shards_of_two_labels(tmp_path / "data")
    index(str(folder), "a")
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(raw | {"index": name}))
    with pytest.raises(DataError, match=r"manifest\.json: not a readable manifest"):
        load_manifest(str(folder))


@pytest.mark.parametrize("url", ["/a.tar", "/data/a.tar", "s3://bucket/a.tar"])
def test_a_shard_elsewhere_is_named_in_full(
    url: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    found = read_manifest(place)
    save_manifest(".", replace(found, shards=(replace(found.shards[0], url=url),)), version="")
    assert json.loads(Path(MANIFEST_NAME).read_text())["shards"][0]["name"] == url


def test_a_manifest_that_somebody_wrote_meanwhile_is_left_as_it_is(place: str) -> None:
    version, manifest = manifest_version(place), read_manifest(place)
    index(place, "b")
    with pytest.raises(ConflictError, match=r"manifest\.json: another command wrote it .*: run this again"):
        save_manifest(place, manifest, version=version)
    with pytest.raises(ConflictError):
        save_manifest(place, manifest, version="")
    assert labels_of(load_manifest(place)) == LABELS["b"]


def test_copies_stay_named_when_the_same_shards_are_indexed_again_and_only_then(place: str) -> None:
    write_copies(place, [40], workers=1)
    assert index(place, "a").copies == load_manifest(place).copies == (40,)
    assert index(place, "b").copies == load_manifest(place).copies == ()


def test_copies_that_got_other_labels_are_not_read_with_the_shards_of_before(place: str) -> None:
    before = write_copies(place, [40], workers=1)
    assert labels_of(load_copies(before, place)[40]) == LABELS["a"]
    index(place, "b")
    write_copies(place, [40], workers=1)
    assert labels_of(load_copies(load_manifest(place), place)[40]) == LABELS["b"]
    with pytest.raises(DataError, match=r"short-40/s-0\.tar: a copy of .*s-0\.tar as it was indexed at another time"):
        load_copies(before, place)


# Between processes ---------------------------------------------------------------------------------------------------


def test_who_is_stopped_between_manifest_and_index_reads_the_pair_that_it_began_with(place: str) -> None:
    def read() -> None:
        manifest = load_manifest(place)
        stop_here()
        reader = SampleReader(manifest)
        stop_here()
        assert [reader.read(number).label for number in range(COUNT)] == LABELS["a"]
        assert labels_of(load_manifest(place)) == LABELS["b"]

    reader = in_process(read)
    for _ in range(2):
        wait_stopped(reader)
        index(place, "b")
        go_on(reader)
    assert ends_well(reader)


def test_copies_of_shards_that_are_indexed_again_meanwhile_are_not_named(place: str) -> None:
    def copy() -> None:
        real = pyramid_module._name_copies
        pyramid_module._name_copies = lambda *arguments: stop_here() or real(*arguments)
        with pytest.raises(DataError, match=r"its shards were re-indexed while the copies were written; run this"):
            write_copies(place, [40], workers=1)

    writer = in_process(copy)
    wait_stopped(writer)
    index(place, "b")
    go_on(writer)
    assert ends_well(writer)
    assert (load_manifest(place).copies, labels_of(load_manifest(place))) == ((), LABELS["b"])


def test_indexing_that_is_overtaken_by_copies_says_so_and_they_stay_named(place: str) -> None:
    def index_again() -> None:
        real = indexing.describe
        indexing.describe = lambda *arguments, **options: stop_here() or real(*arguments, **options)
        with pytest.raises(ConflictError):
            index(place, "b")

    writer = in_process(index_again)
    wait_stopped(writer)
    write_copies(place, [40], workers=1)
    go_on(writer)
    assert ends_well(writer)
    assert (load_manifest(place).copies, labels_of(load_manifest(place))) == ((40,), LABELS["a"])


def test_copies_of_two_sizes_that_are_written_at_once_are_both_named(place: str) -> None:
    def copy() -> None:
        real = manifest_module.replace_file
        before = tag_of(join(place, MANIFEST_NAME))

        def stopped(url: str, data: bytes, tag: str) -> bool:
            if tag == before:
                stop_here()
            return real(url, data, tag)

        manifest_module.replace_file = stopped
        assert write_copies(place, [40], workers=1).copies == (40, 64)

    writer = in_process(copy)
    wait_stopped(writer)
    write_copies(place, [64], workers=1)
    go_on(writer)
    assert ends_well(writer)
    assert load_manifest(place).copies == (40, 64)
    if not is_remote(place):
        assert not list(Path(place).rglob("*.tmp"))


def test_copies_that_another_process_writes_are_waited_for_by_the_user(tmp_path: Path) -> None:
    folder = write_shards_of_two_labels(tmp_path / "data")
    index(str(folder), "a")

    def copy() -> None:
        pyramid_module._write_missing = lambda *_: stop_here()
        write_copies(folder, [40], workers=1)

    writer = in_process(copy)
    wait_stopped(writer)
    with pytest.raises(DataError, match=r"short-40: another process is writing shards there; wait for it"):
        write_copies(folder, [40], workers=1)
    writer.kill()
    writer.join()
    assert write_copies(folder, [40], workers=1).copies == (40,)


# Any interleaving ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards_of_two_labels(tmp_path_factory.mktemp("interleaved") / "data")


def _scanned_here(files: Sequence[RemoteFile], rules: IndexRules, *_: object) -> list[ShardIndex]:
    return [scan_shard(file, json_field=rules.json_field) for file in files]


ACTORS = st.sampled_from(["index a", "index b", "copies 40", "copies 64", "read", "read"])


@given(names=st.lists(ACTORS, min_size=2, max_size=5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_in_any_order_of_steps_a_reader_sees_one_pair_and_no_write_is_lost(
    shards: Path, names: list[str], data: st.DataObject
) -> None:
    place, written = str(shards), list[str]()
    steps = Interleaving(lambda count: data.draw(st.integers(0, count - 1)))

    def actor(name: str) -> Callable[[], object]:
        verb, _, what = name.partition(" ")

        def write() -> None:
            if verb == "index":
                index(place, what)
            else:
                pyramid_module._name_copies(place, read_manifest(place), [int(what)])
            written.append(name)  # no step lies between the write and this

        def read() -> tuple[str, list[int]]:
            manifest = load_manifest(place)
            return manifest.fingerprint, labels_of(manifest)

        return read if verb == "read" else write

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "_scan", _scanned_here)
        known = {index(place, field).fingerprint: LABELS[field] for field in "ba"}  # field a is indexed, without copies
        for name in ("read_file", "tag_of", "write_file", "replace_file"):
            patch.setattr(manifest_module, name, steps.before(getattr(manifest_module, name)))
        patch.setattr(index_rows, "_mapped", steps.before(index_rows._mapped))
        results = steps.run([actor(name) for name in names])
    for name, result in zip(names, results, strict=True):
        if name == "read":
            assert result in list(known.items())
        else:
            assert result is None or isinstance(result, DataError), result
    labels, copies = "a", set[int]()
    for name in written:
        verb, _, what = name.partition(" ")
        if verb == "copies":
            copies.add(int(what))
        elif what != labels:
            labels, copies = what, set()
    final = load_manifest(place)
    assert (labels_of(final), set(final.copies)) == (LABELS[labels], copies)

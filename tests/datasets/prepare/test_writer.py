from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from datasets.errors import DataAwayError, DataError
from datasets.loading.loader import DataConfig, build_eval_loader
from datasets.prepare.folder_lock import locked
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.sources import csv_table
from datasets.prepare.sources.csv_table import CsvTable
from datasets.prepare.sources.image_folder import ImageFolder
from datasets.prepare.writer import WriterConfig, prepare
from infra.storage.base import StorageError
from infra.storage.open import open_storage
from tests.support.shards import image_of


def save(path: Path, number: int, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(1, number)).save(path, kind)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes, 30 JPEGs and 10 PNGs, dots and blanks in names, one file that is no image."""
    folder = tmp_path / "images"
    for number in range(30):
        save(folder / ("cats" if number % 2 else "dogs") / f"photo {number}.v2.jpg", number)
    for number in range(30, 40):
        save(folder / "dogs" / "more" / f"{number}.png", number, "PNG")
    (folder / "cats" / "notes.txt").write_text("not an image")
    return folder


def config(**changes: object) -> WriterConfig:
    return replace(WriterConfig(samples_per_shard=8, workers=2), **changes)  # type: ignore[arg-type]


def digests(out: Path) -> dict[str, str]:
    files = [path for path in sorted(out.rglob("*")) if path.suffix in (".tar", ".npy")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def samples(out: Path, split: str) -> list[dict[str, bytes]]:
    return list(wds.WebDataset(sorted(map(str, (out / split).glob("*.tar"))), shardshuffle=False))


def test_an_image_folder_becomes_shards_that_webdataset_reads(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifests = prepare(ImageFolder(path=tree, val_share=0.3), out, config())
    both = samples(out, "train") + samples(out, "val")
    assert len(both) == 40
    assert len({sample["__key__"] for sample in samples(out, "train")}) == manifests["train"].num_samples
    assert manifests["train"].classes == manifests["val"].classes == ("cats", "dogs")
    assert np.add(manifests["train"].class_counts, manifests["val"].class_counts).tolist() == [15, 25]
    assert {shard.samples for shard in manifests["train"].shards} <= {6, 7, 8}
    assert {frozenset(name for name in sample if name[0] != "_") for sample in both} == {
        frozenset({"jpg", "cls"}),
        frozenset({"png", "cls"}),
    }


def test_files_pass_unchanged(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(ImageFolder(path=tree), out, config())
    both = samples(out, "train") + samples(out, "val")
    for extension, count in (("jpg", 30), ("png", 10)):
        written = [sample[extension] for sample in both if extension in sample]
        assert len(written) == count
        assert {*written} == {path.read_bytes() for path in tree.rglob(f"*.{extension}")}


def test_given_splits_are_kept(tree: Path, tmp_path: Path) -> None:
    base = tmp_path / "split"
    base.mkdir()
    tree.rename(base / "train")
    for number in range(3):
        save(base / "val" / "dogs" / f"{number}.jpg", 100 + number)
    manifests = prepare(ImageFolder(path=base), tmp_path / "out", config())
    assert (manifests["train"].class_counts, manifests["val"].class_counts) == ((15, 25), (0, 3))
    save(base / "val" / "birds" / "x.jpg", 7)
    with pytest.raises(DataError, match="class 'birds' has no folder"):
        ImageFolder(path=base).plan()


def test_bytes_depend_on_the_images_only(tree: Path, tmp_path: Path) -> None:
    prepare(ImageFolder(path=tree), tmp_path / "one", config(workers=1))
    time.sleep(1.1)  # a tar's times have a resolution of a second
    prepare(ImageFolder(path=tree), tmp_path / "two", config(workers=3))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_second_call_writes_nothing_and_a_third_only_what_is_gone(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = ImageFolder(path=tree)
    prepare(source, out, config())
    before, times = digests(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    prepare(source, out, config())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == times
    gone = out / "train" / "train-000001.tar"
    gone.unlink()
    (out / "train" / "train-000002.tar").write_bytes(b"damaged")
    prepare(source, out, config())
    assert digests(out) == before
    assert sum(path.stat().st_mtime_ns != times[path] for path in out.rglob("*.tar")) == 2


def test_other_options_or_other_images_are_refused_and_overwrite_replaces(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(ImageFolder(path=tree), out, config())
    with pytest.raises(DataError, match=r"holds shards made with val_share=0\.1 \(now 0\.3\); .*--overwrite"):
        prepare(ImageFolder(path=tree, val_share=0.3), out, config())
    with pytest.raises(DataError, match=r"samples_per_shard=8 \(now 5\)"):
        prepare(ImageFolder(path=tree), out, config(samples_per_shard=5))
    save(tree / "cats" / "new.jpg", 77)
    with pytest.raises(DataError, match="its images have changed since"):
        prepare(ImageFolder(path=tree), out, config())
    manifests = prepare(ImageFolder(path=tree), out, config(samples_per_shard=5, overwrite=True))
    assert sum(manifest.num_samples for manifest in manifests.values()) == 41
    prepare(ImageFolder(path=tree), tmp_path / "fresh", config(samples_per_shard=5))
    assert digests(out) == digests(tmp_path / "fresh")


def test_shards_of_somebody_else_are_not_touched(tree: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / "train" / "precious.tar"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"precious")
    with pytest.raises(DataError, match="not written by this command"):
        prepare(ImageFolder(path=tree), tmp_path / "out", config())
    assert foreign.read_bytes() == b"precious"


def test_a_damaged_image_ends_it_with_its_name_and_keeps_nothing_half(tree: Path, tmp_path: Path) -> None:
    (tree / "cats" / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match=r"1 of 41 images can't be read: cats/broken\.jpg: corrupt.*--skip-broken"):
        prepare(ImageFolder(path=tree), tmp_path / "out", config())
    for path in (tmp_path / "out").rglob("*.tar"):
        assert samples(path.parent.parent, path.parent.name)
    assert not list((tmp_path / "out").rglob("manifest.json"))


@pytest.mark.parametrize("names", [[], ["readme.txt"], ["a/readme.txt"]])
def test_folders_without_images_are_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    with pytest.raises(DataError, match=r"no such folder|no class folders|no class has images"):
        prepare(ImageFolder(path=tmp_path / "in"), tmp_path / "out", config())


@pytest.mark.parametrize("name", ["two\nlines", "tab\there", "\u2028"])
def test_a_class_name_that_is_not_one_line_is_refused(tree: Path, tmp_path: Path, name: str) -> None:
    save(tree / name / "0.jpg", 50)
    with pytest.raises(DataError, match=r"image-folder: the class name '.*' is not one line") as caught:
        prepare(ImageFolder(path=tree), tmp_path / "out", config())
    assert len(str(caught.value).splitlines()) == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadly(Source):
    """A source whose tenth image kills its process, as running out of memory would."""

    name: ClassVar[str] = "deadly"

    def plan(self) -> Plan:
        items = tuple(Item(str(number), 0) for number in range(20))
        return Plan(classes=("a",), splits={"train": items, "val": items})

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        if item.name == "9":
            os.kill(os.getpid(), 9)
        return "jpg", b"x"


def test_a_killed_writing_process_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a worker process was killed"):
        prepare(Deadly(), tmp_path / "out", config())


def test_progress_counts_images_and_the_loader_reads_the_result(tree: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "out"
    prepare(ImageFolder(path=tree), out, config(), progress=lambda *now: seen.append(now))
    assert seen[-1] == (40, 40, "written")
    assert [total for _, total, _ in seen] == [40] * len(seen)
    assert [what for *_, what in seen] == sorted(what for *_, what in seen), "checked, then written"
    data = DataConfig(train=str(out / "train"), val=str(out / "val"), loader_workers=0)
    batches = list(build_eval_loader(data, image_size=32, batch_size=8, rank=0, world_size=1))
    assert sum(len(batch.labels) for batch in batches) == len(samples(out, "val"))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_filesystem_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match=r"no file can be locked there \(.*\); mount this"), locked(tmp_path, ""):
        pass
    with pytest.raises(StorageError, match="it has no file locks; mount this"):
        open_storage(tmp_path).write_if_match("key", b"new", "etag")


AWAY = [f"s3://bucket/{number}.png" for number in range(6)]


def refuse(place: str) -> bytes:
    raise DataAwayError(f"{place}: away for 900 s")


@dataclass(frozen=True, kw_only=True, slots=True)
class AwayTable(CsvTable):
    """A table whose files are in a storage that is listed, and then away."""

    def _marks(self, table: object, rows: object, *, with_masks: bool) -> dict[str, str]:
        return dict.fromkeys(AWAY, "1")

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(csv_table, "read_bytes", refuse)
            return CsvTable.encode(self, split, item)


def test_storage_that_is_away_ends_the_command_and_no_file_is_called_broken(tmp_path: Path) -> None:
    rows = [f"{name},{'xy'[number % 2]}" for number, name in enumerate(AWAY)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(DataAwayError, match="away for 900 s"):
        prepare(AwayTable(table=str(tmp_path / "table.csv")), tmp_path / "out", config(skip_broken=True))

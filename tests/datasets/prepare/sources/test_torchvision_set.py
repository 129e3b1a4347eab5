"""Torchvision's sets: their own splits, classes and masks; a download comes whole or not at all, or says its URL."""

from __future__ import annotations

import functools
import http.server
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision

from datasets.errors import DataError
from datasets.prepare.torchvision_download import fetch_whole
from datasets.prepare.torchvision_sets import SETS, build_set
from datasets.shards.resolve import load_manifest
from tests.support import torchvision_sets as laid_out
from tests.support.commands import prepare as main
from tests.support.prepared import by_number, prepared


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Prepare, which is refused; return the one line."""
    capsys.readouterr()
    assert main(["torchvision", *arguments, "--workers", "1"]) == 2
    printed = capsys.readouterr()
    error = printed.err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("name", "lay_out", "classes", "splits"),
    [
        ("EuroSAT", laid_out.eurosat, ("Forest", "River"), {"train": range(20)}),
        ("DTD", laid_out.dtd, ("banded", "dotted"), {"train": range(8), "val": range(8, 16), "test": range(16, 24)}),
        ("GTSRB", laid_out.gtsrb, ("0", "1"), {"train": range(20), "test": range(20, 26)}),
        ("Caltech101", laid_out.caltech101, ("ant", "bass"), {"train": range(20)}),
        ("OxfordIIITPet", laid_out.pets, ("Sphynx", "Beagle"), {"train": range(20), "test": range(20, 26)}),
    ],
)
def test_files_are_taken_as_they_are_in_the_sets_own_splits(
    tmp_path: Path, name: str, lay_out: Callable[[Path], None], classes: tuple[str, ...], splits: dict[str, range]
) -> None:
    lay_out(tmp_path / "root")
    found = prepared(tmp_path / "out", "torchvision", name, "--root", str(tmp_path / "root"), "--no-download")
    if "val" not in splits:
        assert np.bincount(found["val"].labels).tolist() == [1, 1]
        assert "val is 10% of the training images" in str(load_manifest(str(tmp_path / "out/train")).source["report"])
    both = by_number(found["train"]) | (by_number(found["val"]) if "val" not in splits else {})
    for split, numbers in splits.items():
        assert (both if split == "train" else by_number(found[split])) == {number: number % 2 for number in numbers}
    assert load_manifest(str(tmp_path / "out/train")).classes == classes


def test_arrays_become_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out.mnist(tmp_path / "root")
    for attribute, value in laid_out.cifar10(tmp_path / "root").items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, attribute, value)
    meta = tmp_path / "root/cifar-10-batches-py/batches.meta"
    monkeypatch.setitem(torchvision.datasets.CIFAR10.meta, "md5", laid_out.md5(meta))
    for name, classes, first in ("MNIST", "0 - zero", 10), ("CIFAR10", "airplane", 2):
        found = prepared(tmp_path / name, "torchvision", name, "--root", str(tmp_path / "root"), "--no-download")
        everything = by_number(found["train"]) | by_number(found["val"])
        assert everything == {number: number % first for number in range(20)}
        assert all(label == number % first for number, label in by_number(found["test"]).items())
        assert load_manifest(str(tmp_path / name / "train")).classes[0] == classes


def test_masks_are_class_numbers_and_what_is_none_is_ignored(tmp_path: Path) -> None:
    laid_out.voc(tmp_path)
    laid_out.pets(tmp_path)
    found = prepared(tmp_path / "voc", "torchvision", "VOCSegmentation", "--root", str(tmp_path), "--no-download")
    for split, count in ("train", 8), ("val", 6):
        batch = found[split]
        assert batch.masks is not None
        assert len(batch.masks) == count
        for image, mask in zip(batch.images, batch.masks, strict=True):
            assert (mask[1:-1, 1:-1] == image[0, 0, 0] // 3).all()
            assert (mask[0] == 255).all()
    assert load_manifest(str(tmp_path / "voc/train")).classes[:2] == ("background", "aeroplane")
    flags = ["--root", str(tmp_path), "--no-download", "--masks", "--split", "test"]
    pets = prepared(tmp_path / "pets", "torchvision", "OxfordIIITPet", *flags)
    assert [*pets] == ["test"]
    assert pets["test"].masks is not None
    assert pets["test"].masks[:, :4, 0].tolist() == [[1, 0, 255, 1]] * 6


@pytest.mark.parametrize("name", SETS)
def test_each_set_of_the_table_is_there_and_knows_its_splits(tmp_path: Path, name: str) -> None:
    for split in SETS[name].splits:
        with pytest.raises((RuntimeError, FileNotFoundError)):
            build_set(name, tmp_path, split, variant="", download=False)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def test_a_download_is_checked_and_comes_whole_or_not_at_all(
    tmp_path: Path, served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = served
    laid_out.dtd(tmp_path / "made")
    with tarfile.open(folder / "dtd.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made/dtd/dtd", "dtd")
    root = tmp_path / "root"
    flags = ["DTD", "--root", str(root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{url}/none.tar.gz")
    assert f"torchvision DTD: {url}/none.tar.gz: HTTP Error 404: File not found; try again" in refused(capsys, *flags)
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{url}/dtd.tar.gz")
    assert f"DTD: {url}/dtd.tar.gz: File not found or corrupted.; try again, or copy the" in refused(capsys, *flags)
    assert not [*root.iterdir()]
    assert f"torchvision DTD: Dataset not found in {root}; name the folder" in refused(capsys, *flags, "--no-download")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", laid_out.md5(folder / "dtd.tar.gz"))
    (root / ".DTD.partial").mkdir()  # of one that was killed
    (root / "dtd/mine").mkdir(parents=True)
    found = prepared(tmp_path / "out", "torchvision", *flags[:3])
    assert by_number(found["test"]) == {number: number % 2 for number in range(16, 24)}
    assert sorted(path.name for path in root.iterdir()) == ["dtd"]
    assert (root / "dtd/mine").is_dir()


@pytest.mark.parametrize("fails", [False, True])
def test_two_at_once_download_one_set_once(tmp_path: Path, fails: bool) -> None:
    downloads: list[str] = []

    def fetched(name: str, during: Callable[[], None]) -> None:
        def download(folder: Path) -> None:
            downloads.append(name)
            (folder / "set").mkdir()
            during()
            (folder / "set/image").touch()

        fetch_whole("SET", tmp_path, download, is_there=(tmp_path / "set/image").exists)

    second = threading.Thread(target=fetched, args=("second", lambda: None))

    def meanwhile() -> None:
        second.start()
        second.join(0.5)  # it has the time to do harm, if it can
        if fails:
            raise OSError("no network")

    try:
        fetched("first", meanwhile)
    except DataError:
        assert fails
    second.join()
    assert downloads == (["first", "second"] if fails else ["first"])
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["image"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["cifar10"], "dataset is 'cifar10'; did you mean CIFAR10?"),
        (["ImageNet21k"], "dataset is 'ImageNet21k'; did you mean "),
        (["MNIST", "--masks"], "masks: MNIST has none"),
        (["MNIST", "--variant", "2012"], "variant is '2012', and MNIST has only one"),
        (["MNIST", "--split", "val"], "split is 'val', and MNIST has train and test alone"),
        (
            ["EMNIST", "--variant", "greek"],
            "torchvision EMNIST: Unknown value 'greek' for argument split. Valid values",
        ),
        (["FER2013"], "train.csv not found in "),
        (["StanfordCars"], "the StanfordCars dataset cannot be downloaded anymore"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    error = refused(capsys, *flags, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out"))
    assert message in error
    assert ".partial" not in error


def test_a_root_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root").touch()
    flags = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert "root: it is a file, and a folder is needed" in refused(capsys, "MNIST", *flags)

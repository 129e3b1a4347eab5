"""What in a folder is a sample, and what is said of the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.prepare.source import Item
from datasets.prepare.sources.image_folder import ImageFolder
from datasets.prepare.split import hold_out
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.resolve import load_manifest
from datasets.transforms.formats import IMAGE_EXTENSIONS
from tests.support.commands import prepare as main
from tests.support.odd_folders import NO_SAMPLES, class_tree, odd_folder, picture, put

CONFIG = WriterConfig(workers=2)
TWO = {"cat": 4, "dog": 4}


def test_the_report_counts_all_that_is_written_and_all_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = odd_folder(tmp_path / "odd"), tmp_path / "out"
    assert main(["image-folder", str(folder), "--out", str(out), "--workers", "2", "--skip-broken"]) == 0
    report = load_manifest(str(out / "train")).source["report"]
    assert report["images"] == {
        "train": {"cat": 8, "dog": 6, "newt": 0},
        "val": {"cat": 4, "dog": 3, "newt": 0},
        "test": {"cat": 2, "dog": 3, "newt": 0},
    }
    assert {why: files for why, (files, _) in report["left_out"].items()} == {
        why: len(names) for why, names in NO_SAMPLES.items()
    }
    for why, (_, example) in report["left_out"].items():
        if why not in ("broken", "next to the split folders"):
            assert example in NO_SAMPLES[why]
    assert set(report["repeated"]) == {"in train and val", "in train and test", "under two classes"}
    assert {split: load_manifest(str(out / split)).num_samples for split in ("train", "val", "test")} == {
        "train": 14,
        "val": 7,
        "test": 5,
    }
    shown = capsys.readouterr().out
    assert "no images of newt in train, val, test" in shown
    assert "left out: 22 files" in shown
    assert "    broken: 3" in shown
    assert "same image in train and val: 1 (train/cat/cat-0.png = val/cat/twin.png)" in shown


def test_all_broken_files_are_named_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    folder = odd_folder(tmp_path / "odd")
    with pytest.raises(DataError, match=r"3 of 29 images can't be read: .*--skip-broken") as caught:
        prepare(ImageFolder(path=folder), tmp_path / "out", CONFIG)
    assert all(name in str(caught.value) for name in NO_SAMPLES["broken"])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.tar"))
    for number in range(20):
        put(folder / f"train/cat/cut-{number}.png", b"\x89PNG")
    with pytest.raises(DataError, match=r"23 of 49 images .*; and 18 more; repair"):
        prepare(ImageFolder(path=folder), tmp_path / "out", CONFIG)


def test_every_extension_that_the_decoder_reads_is_a_sample(tmp_path: Path) -> None:
    for number, extension in enumerate(sorted(IMAGE_EXTENSIONS)):
        for label in ("cat", "dog"):
            put(tmp_path / "in" / label / f"{number}.{extension.upper()}", picture(number + 100 * (label == "dog")))
    plan = ImageFolder(path=tmp_path / "in").plan()
    assert sum(map(len, plan.splits.values())) == 2 * len(IMAGE_EXTENSIONS)
    assert not plan.left_out


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "Val", "valid", "validation", "dev"])
def test_split_folders_have_other_names_too(train: str, val: str, tmp_path: Path) -> None:
    class_tree(tmp_path / train, TWO)
    class_tree(tmp_path / val, {"cat": 1, "dog": 2}, first=500)
    plan = ImageFolder(path=tmp_path).plan()
    assert plan.classes == ("cat", "dog")
    assert {split: len(items) for split, items in plan.splits.items()} == {"train": 8, "val": 3}


@pytest.mark.parametrize("test", ["", "test", "Testing"])
def test_without_a_validation_folder_a_share_of_training_is_held_out_and_test_stays_test(
    test: str, tmp_path: Path
) -> None:
    class_tree(tmp_path / "train", {"cat": 20, "dog": 5})
    if test:
        class_tree(tmp_path / test, TWO, first=500)
    plan = ImageFolder(path=tmp_path).plan()
    assert plan.classes == ("cat", "dog")
    counts = {split: Counter(item.label for item in items) for split, items in plan.splits.items()}
    assert counts == {"train": {0: 18, 1: 4}, "val": {0: 2, 1: 1}} | ({"test": {0: 4, 1: 4}} if test else {})
    assert "val is 10% of each class" in plan.notes[0]


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "two folders of a split": (
        lambda path: [class_tree(path / name, TWO) for name in ("train", "val", "valid")],
        r"val and valid are both the val split",
    ),
    "no train": (lambda path: [class_tree(path / name, TWO) for name in ("val", "test")], r"a split without .*train"),
    "train among classes": (
        lambda path: [class_tree(path / "train", TWO), class_tree(path, {"bus": 2})],
        r"is train/ a split, or a class like bus/\?",
    ),
    "empty val": (lambda path: [class_tree(path / "train", TWO), (path / "val").mkdir()], r"val split has no class"),
    "flat splits": (
        lambda path: [put(path / split / "a.png", picture(1)) for split in ("train", "val")],
        r"train: no class folders in it",
    ),
    "splits below classes": (
        lambda path: [class_tree(path / name, {"train": 2, "val": 1}) for name in ("cat", "dog")],
        r"the splits are in the classes",
    ),
    "one class": (lambda path: class_tree(path, {"cat": 4}), r"only 'cat' has images"),
    "no image": (lambda path: put(path / "cat" / "a.txt", b"x"), r"no class has images"),
    "unknown class": (
        lambda path: [class_tree(path / "train", TWO), class_tree(path / "val", {"Cat": 1})],
        r"class 'Cat' has no folder",
    ),
    "untrained class": (
        lambda path: [
            class_tree(path / "train", {**TWO, "newt": 0}),
            (path / "train" / "newt").mkdir(),
            class_tree(path / "val", {"newt": 1}),
        ],
        r"class 'newt' has images in val, but none for training",
    ),
    "validation on training": (
        lambda path: [class_tree(path / "train", TWO), class_tree(path / "val", TWO)],
        r"every image of val is in train too",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_can_only_be_a_mistake_is_refused_with_one_line(name: str, tmp_path: Path) -> None:
    make, message = MISTAKES[name]
    make(tmp_path / "in")
    with pytest.raises(DataError, match=message) as caught:
        prepare(ImageFolder(path=tmp_path / "in"), tmp_path / "out", CONFIG)
    assert "\n" not in str(caught.value)


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    class_tree(tmp_path, {"bus": 3, "test": 3, "train": 3})
    plan = ImageFolder(path=tmp_path).plan()
    assert plan.classes == ("bus", "test", "train")


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), share=st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_every_class_is_split_alike(sizes: list[int], share: float) -> None:
    items = tuple(Item(f"{label}/{n}", label) for label, size in enumerate(sizes) for n in range(size))
    if max(sizes) == 1:
        with pytest.raises(DataError, match=r"^x: no validation split, and none can be held out"):
            hold_out(items, share, lambda item: item.label, "x")
        return
    splits = hold_out(items, share, lambda item: item.label, "x")
    assert sorted((*splits["train"], *splits["val"]), key=items.index) == list(items)
    for label, size in enumerate(sizes):
        held_out = sum(item.label == label for item in splits["val"])
        assert held_out == min(max(1, round(size * share)), size - 1)


def test_an_interrupted_call_does_not_decode_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.prepare import check, writer

    class_tree(tmp_path / "in", TWO)
    real = writer.run_tasks
    monkeypatch.setattr(writer, "run_tasks", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(ImageFolder(path=tmp_path / "in"), tmp_path / "out", CONFIG)
    monkeypatch.setattr(writer, "run_tasks", real)
    monkeypatch.setattr(check, "run_tasks", lambda *_, **__: pytest.fail("decoded again"))
    manifests = prepare(ImageFolder(path=tmp_path / "in"), tmp_path / "out", CONFIG)
    assert sum(manifest.num_samples for manifest in manifests.values()) == 8


def prepared_split(path: Path, out: Path, *flags: str) -> Counter[int]:
    """Prepare one split alone; return how many images it has of each class number."""
    assert main(["image-folder", str(path), "--out", str(out), "--workers", "1", *flags]) == 0
    assert [folder.name for folder in out.iterdir() if folder.is_dir()] == ["test"]
    counts = load_manifest(str(out / "test")).class_counts
    return Counter({label: count for label, count in enumerate(counts) if count})


def test_one_split_alone_has_the_numbers_of_the_classes_that_were_trained(tmp_path: Path) -> None:
    class_tree(tmp_path / "all/train", {**TWO, "ape": 3})
    class_tree(tmp_path / "all/testing", {"dog": 2, "cat": 1}, first=500)
    assert prepared_split(tmp_path / "all", tmp_path / "a", "--split", "test") == {1: 1, 2: 2}
    later = class_tree(tmp_path / "later", {"dog": 1, "cat": 1}, first=900)
    for number, classes in enumerate(("ape,cat,dog", str(tmp_path / "a/test"))):
        found = prepared_split(later, tmp_path / f"b{number}", "--split", "test", "--classes", classes)
        assert found == {1: 1, 2: 1}


def test_classes_can_be_named_where_training_has_none_of_one(tmp_path: Path) -> None:
    class_tree(tmp_path / "in", {"cat": 20, "dog": 20})
    plan = ImageFolder(path=tmp_path / "in", classes="dog,newt,cat").plan()
    assert plan.classes == ("dog", "newt", "cat")
    assert Counter(item.label for item in plan.splits["val"]) == {0: 2, 2: 2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "test"], "no folder of the test split in it, only train, val; name the folder that is meant"),
        (["--classes", "cat"], "--classes cat: no file of names, no prepared data, and no checkpoints of a run in "),
        (
            ["--classes", "cat,cow"],
            "train: the folder 'dog' is none of the 2 classes (cat, cow); rename it, or move it",
        ),
        (["--split", "val", "--also-short-side", "64"], "--also-short-side is for training shards"),
        (["--split", "hold"], "--split"),
    ],
)
def test_a_split_or_classes_that_are_not_there_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        class_tree(tmp_path / "in" / split, TWO)
    assert main(["image-folder", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_shards_from_before_there_were_these_options_are_gone_on_with(tmp_path: Path) -> None:
    prepare(ImageFolder(path=class_tree(tmp_path / "in", TWO)), tmp_path / "out", CONFIG)
    assert set(json.loads((tmp_path / "out/prepare.json").read_text())["options"]) == {"val_share"}

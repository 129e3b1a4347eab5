"""Tables of images, CSV and Parquet: labels, splits and masks as they say; mistakes are one line with the row."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.files import s3
from datasets.files.tables import open_table
from datasets.shards.resolve import load_manifest
from tests.support.commands import prepare as main
from tests.support.prepared import SIDE, by_number, numbered, png, prepared

MANY = ",".join(f"class-{number:02d}" for number in range(80))
"""Longer than the name of a file may be."""


def write_images(folder: Path, count: int) -> list[str]:
    """Write images whose shade is 3 times their number."""
    names = [f"images/{number:02d}.png" for number in range(count)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(numbered(number))
    return names


def write_table(folder: Path, rows: list[dict[str, object]], *, parquet: bool = False, delimiter: str = ",") -> str:
    path = folder / ("table.parquet" if parquet else "table.csv")
    if parquet:
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(delimiter.join(map(str, line)) + "\n" for line in lines), encoding="utf-8-sig")
    return str(path)


@pytest.mark.parametrize(("parquet", "delimiter"), [(True, ","), (False, ","), (False, ";"), (False, "\t")])
def test_each_row_is_an_image_with_its_class_and_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parquet: bool, delimiter: str
) -> None:
    names, splits = write_images(tmp_path, 30), ["train", "train", "Validation", "train", "test"]
    rows: list[dict[str, object]] = [
        {"label": number % 11 if parquet else f" {number % 11}", "split": splits[number % 5], "path": f"./{name}"}
        for number, name in enumerate(names)
    ]
    found = prepared(tmp_path / "out", "csv", write_table(tmp_path, rows, parquet=parquet, delimiter=delimiter))
    for position, split in ((2, "val"), (4, "test")):
        assert by_number(found[split]) == {number: number % 11 for number in range(30) if number % 5 == position}
    assert load_manifest(str(tmp_path / "out/train")).classes == tuple(map(str, range(11)))
    assert "train: 18 images of 11 classes" in capsys.readouterr().out


def test_without_splits_each_class_gives_to_validation_and_paths_are_below_the_root(tmp_path: Path) -> None:
    names = write_images(tmp_path / "elsewhere", 30)
    rows: list[dict[str, object]] = [
        {"file": name, "what": "rare" if number < 3 else "usual"} for number, name in enumerate(names)
    ]
    flags = ["--path-column", "file", "--label-column", "what", "--root", str(tmp_path / "elsewhere")]
    found = prepared(tmp_path / "out", "csv", write_table(tmp_path, rows), *flags)
    assert np.bincount(found["val"].labels).tolist() == [1, 3]
    assert by_number(found["train"]) | by_number(found["val"]) == {number: int(number >= 3) for number in range(30)}


SEVERAL = {0: [], 1: ["a"], 2: ["b"], 3: ["c", "a"]}


def several(number: int) -> list[str]:
    return SEVERAL[number % 4]


@pytest.mark.parametrize("form", ["separator", "columns", "lists"])
def test_several_labels_an_image_in_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    rows: list[dict[str, object]] = []
    for number, name in enumerate(write_images(tmp_path, 40)):
        own = several(number)
        label: dict[str, object] = {"label": own if form == "lists" else "; ".join(own)}
        rows.append({"path": name, **({key: int(key in own) for key in "abc"} if form == "columns" else label)})
    flags = {"separator": ["--label-separator", ";"], "columns": ["--label-columns", "*"], "lists": []}[form]
    found = prepared(tmp_path / "out", "csv", write_table(tmp_path, rows, parquet=form == "lists"), *flags)
    assert by_number(found["train"]) | by_number(found["val"]) == {
        number: [int(key in several(number)) for key in "abc"] for number in range(40)
    }
    assert len(found["val"].labels) == 4
    manifest = load_manifest(str(tmp_path / "out/train"))
    assert (manifest.kind, manifest.classes) == ("multilabel", ("a", "b", "c"))
    assert "train: 36 labels: a 18, b 9, c 9" in capsys.readouterr().out


def test_classes_are_those_of_a_file_or_of_prepared_data_and_an_empty_one_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_images(tmp_path, 20)
    table = write_table(tmp_path, [{"path": name, "label": "dog" if "1" in name else "cat"} for name in names])
    (tmp_path / "classes.txt").write_text("horse\ndog\ncat\n")
    for number, classes in enumerate([str(tmp_path / "classes.txt"), "horse,dog,cat", str(tmp_path / "0")]):
        found = prepared(tmp_path / str(number), "csv", table, "--classes", classes)
        assert set(found["train"].labels.tolist()) == {1, 2}
        assert "no images of horse in train, val" in capsys.readouterr().out


def test_a_row_that_is_there_twice_is_left_out_in_each_split(tmp_path: Path) -> None:
    names = write_images(tmp_path, 6)
    labels = {name: "dog" if number % 2 else "cat" for number, name in enumerate(names)}
    splits = [("train", names[:4]), ("val", [names[0], *names[4:], names[0]])]
    rows = [{"path": name, "label": labels[name], "split": split} for split, those in splits for name in those]
    found = prepared(tmp_path / "out", "csv", write_table(tmp_path, rows))
    assert {split: len(batch.labels) for split, batch in found.items()} == {"train": 4, "val": 3}


def test_one_split_alone_is_what_it_says(tmp_path: Path) -> None:
    splits = ["train", "test", "val"]
    rows: list[dict[str, object]] = [
        {"path": name, "label": "xy"["1" in name], "split": splits[number % 3]}
        for number, name in enumerate(write_images(tmp_path, 12))
    ]
    found = prepared(tmp_path / "a", "csv", write_table(tmp_path, rows), "--split", "test", "--classes", "z,y,x")
    assert {split: by_number(batch) for split, batch in found.items()} == {"test": {1: 1, 4: 2, 7: 2, 10: 1}}
    for row in rows:
        del row["split"]
    found = prepared(tmp_path / "b", "csv", write_table(tmp_path, rows), "--split", "val")
    assert {split: len(batch.labels) for split, batch in found.items()} == {"val": 12}


def test_masks_are_made_into_class_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, rows = write_images(tmp_path, 20), list[dict[str, object]]()
    for number, name in enumerate(names):
        mask = np.full((SIDE, SIDE), 255 * (number % 2), np.uint8)
        (tmp_path / f"{number}.png").write_bytes(png(mask))
        rows.append({"path": name, "truth": f"{number}.png"})
    flags = ["--mask-column", "truth", "--classes", "good,bad", "--binary"]
    found = prepared(tmp_path / "out", "csv", write_table(tmp_path, rows), *flags)
    for batch in found.values():
        assert batch.masks is not None
        for image, mask in zip(batch.images, batch.masks, strict=True):
            assert (mask == int(image[0, 0, 0]) // 3 % 2).all()
        assert batch.labels.tolist() == batch.masks[:, 0, 0].tolist()  # what the images are sampled by
    assert "train: 18 images, pixels: bad 55.56%, good 44.44%" in capsys.readouterr().out


def test_what_is_missing_or_damaged_is_listed_at_once_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_images(tmp_path, 20)
    table = write_table(tmp_path, [{"path": name, "label": "xy"["1" in name]} for name in names])
    (tmp_path / names[3]).unlink()
    (tmp_path / names[5]).write_bytes(b"no image")
    command = ["csv", table, "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "2 of 20 images can't be read: " in error
    assert f"{table}: line 5: images/03.png: no such file; {table}: line 7: images/05.png: corrupt" in error
    assert len(error.strip().splitlines()) == 1
    assert main([*command, "--skip-broken"]) == 0
    assert "broken: 2" in capsys.readouterr().out


def test_a_moved_table_is_gone_on_with_and_another_label_is_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_images(tmp_path / "a", 20)
    rows: list[dict[str, object]] = [{"path": name, "label": "xy"["1" in name]} for name in names]
    write_table(tmp_path / "a", rows)
    out = ["--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["csv", str(tmp_path / "a/table.csv"), *out]) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "out/train/manifest.json").unlink()
    before = (tmp_path / "out/train/train-000000.tar").stat().st_mtime_ns
    write_table(tmp_path / "b", rows[::-1])
    assert main(["csv", str(tmp_path / "b/table.csv"), *out]) == 0
    assert (tmp_path / "out/train/train-000000.tar").stat().st_mtime_ns == before
    write_table(tmp_path / "b", [{**rows[0], "label": "y"}, *rows[1:]])
    assert main(["csv", str(tmp_path / "b/table.csv"), *out]) == 2
    assert "its images have changed since" in capsys.readouterr().err


def test_table_and_images_can_lie_in_s3(s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = write_images(tmp_path, 20)
    rows: list[dict[str, object]] = [{"path": name, "label": "xy"["1" in name]} for name in names]
    rows[3]["path"] = f"{s3_uri}/images/03.png"
    for place in (*names, write_table(tmp_path, rows, parquet=True)):
        s3.upload(f"{s3_uri}/{Path(place).relative_to(tmp_path) if place[0] == '/' else place}", tmp_path / place)
    found = prepared(tmp_path / "out", "csv", f"{s3_uri}/table.parquet")
    assert by_number(found["train"]) | by_number(found["val"]) == {
        number: int("1" in name) for number, name in enumerate(names)
    }
    s3.delete(f"{s3_uri}/images/07.png")
    assert main(["csv", f"{s3_uri}/table.parquet", "--out", str(tmp_path / "other"), "--workers", "1"]) == 2
    assert f"{s3_uri}/table.parquet: row 8: images/07.png: no such file" in capsys.readouterr().err


A, B = "images/00.png", "images/01.png"


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("", [], "table.csv: it is empty; the first line names the columns"),
        ("path,label\n", [], "table.csv: no rows in it, only the header"),
        (f"file,label\n{A},x\n", [], "table.csv: no column 'path' in it, only file, label; name it with --path-column"),
        (f"path,class\n{A},x\n", [], "no column 'label' in it, only path, class; name it with --label-column"),
        (f"path,label\n{A},x\n", ["--split-column", "fold"], "no column 'fold' in it"),
        (f"path,label\n{A},x\n", ["--label-columns", "is_*"], "no column 'is_*' in it, only path, label; name it with"),
        (f"path,label,label\n{A},x,y\n", [], "two columns have the name 'label'"),
        (f"path,label\n{A},x\n\n{B},\n", [], "table.csv: line 4: the column 'label' is empty; fill it, or remove"),
        (f"path,label\n{A},x\n,y\n", [], "table.csv: line 3: the column 'path' is empty"),
        (f"path,n\n{A},1\n{B},nan\n", ["--targets", "n"], "line 3: the column 'n' holds 'nan', not a number; cor"),
        (f"path,n\n{A},1\n{B},-1e39\n", ["--targets", "n"], "line 3: the column 'n' holds '-1e39', beyond 3.4e+38"),
        (f"path,label\n{A},x\n{B}\n", [], "table.csv: line 3: 1 fields, the header has 2; quote what has a ','"),
        (f"path,label,split\n{A},x,hold\n", [], "table.csv: line 2: the column 'split' holds 'hold'; write train, val"),
        (f"path,label,split\n{A},x,val\n", [], "table.csv: no row is of the split train, only of val"),
        (f"path,label,split\n{A},x,val\n", ["--split", "test"], "no row is of the split test, only of val"),
        (f"path,label\n{A},x\n./{A},y\n", [], "line 3: images/00.png has another label in line 2 (x, here y); keep"),
        ("path,label\nhttps://x/a.png,x\n", [], "line 2: https://x/a.png: only paths and s3:// can be read"),
        ("path,label\na.png,x\nb.png,y\n", [], "a.png: no such file, nor any of the others; name the folder"),
        (f"path,label\n{A},x\n{B},x\n", [], "table.csv: only 'x' has images for training; two classes"),
        (
            f"path,label,split\n{A},x,train\n{B},y,train\nimages/02.png,z,val\n",
            [],
            "line 4: class 'z' has images in val, but none for training",
        ),
        (f"path,label\n{A},x\n{B},z\n", ["--classes", "x,y"], "line 3: the label 'z' is none of the 2 classes (x, y)"),
        (f"path,label\n{A},x\n{B},y\n", ["--classes", "x"], "--classes x: no file of names, no prepared data"),
        (f"path,label\n{A},1\n{B},0\n", ["--classes", "1,2,3"], "line 3: the label '0' is none of the 3 classes"),
        (f"path,label\n{A},x\n", ["--classes", MANY], "line 2: the label 'x' is none of the 80 classes (class-00, "),
        (f"path,label\n{A},\n{B},\n", ["--label-separator", ";"], "table.csv: no row has a label; name their column"),
        (f"path,label\n{A},x\n{B},y\n", ["--classes", "x,x"], "--classes x,x: 'x' is there twice"),
        (f"path,a,b\n{A},1,0\n{B},1,2\n", ["--label-columns", "a", "b"], "line 3: the column 'b' holds '2'; write 1"),
        (f"path,mask\n{A},a.png\n", ["--mask-column", "mask"], "--mask-column needs --classes"),
        (f"path,mask\n{A},\n", ["--mask-column", "mask", "--classes", "a,b"], "line 2: the column 'mask' is empty"),
        (f"path,label\n{A},x\n", ["--binary"], "--ignore and --binary are about masks"),
        (f'path,label\n{A},"x"y\n', [], "line 2: ',' expected after '\"'"),
        (f"path,label\n{A},x\n", ["--val-share", "1"], "--val-share is 1"),
        (f"path,label\n{A},x\n{B},y\n", [], "table.csv: no validation split, and none can be held out: no class"),
        (
            f"path,label,split\n{A},x,train\n{B},y,train\nimages/02.png,x,val\n",
            ["--val-share", "0.2"],
            "table.csv: --val-share 0.2 does nothing: there is a validation split, or",
        ),
        (f"path,n\n{A},1\n{B},2\n", ["--targets", "n", "--label-separator", ";"], "--label-separator is for --label"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_the_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, flags: list[str], message: str
) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "table.csv").write_text(text)
    command = ["csv", str(tmp_path / "table.csv"), *flags, "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("no.csv", None, "no.csv: there is no such file"),
        ("no.parquet", None, "no.parquet: there is no such file"),
        ("a.parquet", b"PAR1 and more", "a.parquet: not a readable Parquet file"),
        ("a.csv", "path,label\né,x".encode("latin-1"), "a.csv: not text in UTF-8 (invalid continuation byte"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert main(["csv", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


CELLS = st.lists(st.tuples(*[st.text("a0.é,;|\"'", min_size=1, max_size=5)] * 2), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(CELLS)
def test_csv_and_parquet_say_the_same(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path in (Path(folder, "a.csv"), Path(folder, "a.parquet")):
            if path.suffix == ".csv":
                with path.open("w", newline="", encoding="utf-8") as stream:
                    csv.writer(stream).writerows([("path", "label"), *rows])
            else:
                pq.write_table(pa.table({"path": [row[0] for row in rows], "label": [row[1] for row in rows]}), path)
            table = open_table(str(path))
            assert [row.cells for row in table.rows(["label", "path"])] == [(label, path) for path, label in rows]

"""Parquet files as Hugging Face writes them: types, class names and splits as they say; mistakes name file and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.files import s3
from datasets.files.s3 import RemoteFile
from datasets.prepare import parquet_rows
from datasets.prepare.parquet_rows import ParquetPart
from datasets.prepare.sources.hf_parquet import HfParquet
from datasets.shards.resolve import load_manifest
from tests.support.commands import prepare as main
from tests.support.hf_parquet import CLASS_LABEL, IMAGE, NAMES, images, write, write_classes
from tests.support.prepared import SIDE, by_number, numbered, png, prepared


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Prepare, which is refused; return the one line."""
    capsys.readouterr()
    assert main(["parquet", *arguments, "--workers", "1"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize(("train", "val"), [("train-{}", "validation-{}"), ("train/{}", "val/{}")])
def test_files_say_splits_and_class_names(tmp_path: Path, train: str, val: str) -> None:
    train, val = (str(tmp_path / "hf/data" / f"{name}.parquet") for name in (train, val))
    write_classes(Path(train.format("00000-of-00002")), range(10))
    write_classes(Path(train.format("00001-of-00002")), range(10, 20))
    write_classes(Path(val.format("00000-of-00001")), range(20, 30))
    write_classes(tmp_path / "hf/data/test-00000-of-00001.parquet", range(30, 40))
    found = prepared(tmp_path / "out", "parquet", str(tmp_path / "hf"))
    for split, numbers in ("train", range(20)), ("val", range(20, 30)), ("test", range(30, 40)):
        assert by_number(found[split]) == {number: number % 3 for number in numbers}
    assert load_manifest(str(tmp_path / "out/train")).classes == tuple(NAMES)


BYTES = pa.array([numbered(number) for number in range(20)], pa.binary())


@pytest.mark.parametrize(
    ("columns", "features", "flags", "classes"),
    [
        ({"image": BYTES, "label": [f"c{number % 3}" for number in range(20)]}, None, [], ("c0", "c1", "c2")),
        ({"image": BYTES, "label": [number % 3 + 9 for number in range(20)]}, None, [], ("9", "10", "11")),
        ({"image": BYTES, "kind": [number % 3 for number in range(20)]}, {"kind": CLASS_LABEL}, [], tuple(NAMES)),
        (
            {"jpg": BYTES, "thumb": BYTES, "fine": [number % 3 for number in range(20)], "label": [0] * 20},
            {"fine": CLASS_LABEL, "label": CLASS_LABEL},
            ["--image-column", "jpg", "--label-column", "fine"],
            tuple(NAMES),
        ),
    ],
)
def test_columns_are_found_by_their_types_or_named(
    tmp_path: Path, columns: dict[str, Any], features: dict[str, object] | None, flags: list[str], classes: tuple[str]
) -> None:
    write(tmp_path / "images.parquet", columns, features)
    found = prepared(tmp_path / "out", "parquet", str(tmp_path / "images.parquet"), *flags)
    assert by_number(found["train"]) | by_number(found["val"]) == {number: number % 3 for number in range(20)}
    assert np.bincount(found["val"].labels).tolist() == [1, 1, 1]
    assert load_manifest(str(tmp_path / "out/train")).classes == classes


def test_classes_of_other_data_number_by_name_and_minus_one_is_no_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "train.parquet", range(12))
    labels = [0, 1, -1, 2, None, 0]
    write(tmp_path / "test.parquet", {"image": images(range(6)), "label": labels}, {"label": CLASS_LABEL})
    flags = ["--split", "test", "--classes", "horse,ant,cat,dog"]
    found = prepared(tmp_path / "out", "parquet", str(tmp_path), *flags)
    assert by_number(found["test"]) == {0: 3, 1: 2, 3: 1, 5: 3}
    assert "without a label: 2 (test.parquet: row 3)" in capsys.readouterr().out


@pytest.mark.parametrize("form", [[CLASS_LABEL], {"feature": CLASS_LABEL, "_type": "List"}, None])
def test_lists_are_several_labels(tmp_path: Path, form: object) -> None:
    rows = [[], [0], [2, 1, 2], [1]] * 5
    labels = rows if form is not None else [[NAMES[label] for label in row] for row in rows]
    columns = {"image": images(range(20)), "label": pa.array(labels)}
    write(tmp_path / "train-0.parquet", columns, {"label": form} if form is not None else None)
    found = prepared(tmp_path / "out", "parquet", str(tmp_path), "--classes", "dog,cat,ant")
    assert by_number(found["train"]) | by_number(found["val"]) == {
        number: [int(label in rows[number]) for label in range(3)] for number in range(20)
    }
    assert load_manifest(str(tmp_path / "out/train")).kind == "multilabel"


def test_a_second_column_of_images_is_the_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = [{"bytes": png(np.full((SIDE, SIDE), number % 3, np.uint8)), "path": ""} for number in range(20)]
    write(tmp_path / "train-0.parquet", {"image": images(range(20)), "annotation": pa.array(masks, IMAGE)})
    flags = ["--mask-column", "annotation", "--classes", "sky,road,void", "--ignore", "void"]
    found = prepared(tmp_path / "out", "parquet", str(tmp_path), *flags)
    for batch in found.values():
        assert batch.masks is not None
        for image, mask in zip(batch.images, batch.masks, strict=True):
            assert (mask == (0, 1, 255)[int(image[0, 0, 0]) // 3 % 3]).all()
        seen = batch.masks[:, 0, 0] != 255
        assert batch.labels[seen].tolist() == batch.masks[seen, 0, 0].tolist()  # what the images are sampled by
    masks[6] = {"bytes": png(np.zeros((4, 8), np.uint8)), "path": ""}
    write(tmp_path / "train-0.parquet", {"image": images(range(20)), "annotation": pa.array(masks, IMAGE)})
    error = refused(capsys, str(tmp_path), *flags, "--out", str(tmp_path / "other"))
    assert "row 7: annotation: the mask has 8x4 pixels, its image train-0.parquet:7 16x16; make them equal" in error


def test_a_dataset_can_lie_in_s3(s3_uri: str, tmp_path: Path) -> None:
    for split, numbers in ("train", range(20)), ("test", range(20, 26)):
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        write_classes(path, numbers)
        s3.upload(f"{s3_uri}/data/{path.name}", path)
    found = prepared(tmp_path / "out", "parquet", s3_uri)
    assert by_number(found["train"]) | by_number(found["val"]) == {number: number % 3 for number in range(20)}
    alone = prepared(tmp_path / "one", "parquet", f"{s3_uri}/data/test-00000-of-00001.parquet", "--split", "test")
    assert by_number(alone["test"]) == by_number(found["test"]) == {number: number % 3 for number in range(20, 26)}


def test_rows_are_read_once_in_their_order_and_shards_take_whole_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "_ROWS_AT_ONCE", 2)
    write_classes(tmp_path / "train-0.parquet", range(40))
    part = ParquetPart("train-0.parquet", RemoteFile(str(tmp_path / "train-0.parquet"), 0, ""), "")
    reader, begun = parquet_rows._Reader(part, "image"), list[int]()
    iter_batches = reader._file.iter_batches

    def counted(*arguments: object, row_groups: list[int], **options: object) -> object:
        begun.extend(row_groups)
        return iter_batches(*arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(reader._file, "iter_batches", counted)
    for row in [*range(40), 17, 38]:
        value = reader.at(row)
        assert isinstance(value, dict)
        assert value["bytes"] == numbered(row)
    assert begun == [*range(10), 4, 9]
    items = HfParquet(folder=str(tmp_path)).plan().splits["train"]
    assert {item.chunk: None for item in items} == {f"train-0.parquet:{group}": None for group in range(10)}


def test_what_is_no_image_is_listed_with_its_row_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = images(range(20)).to_pylist()
    cells[3], cells[5], cells[7] = None, {"bytes": None, "path": "a.png"}, {"bytes": b"none", "path": ""}
    write(tmp_path / "train-0.parquet", {"image": pa.array(cells, IMAGE), "label": ["x", "y"] * 10})
    command = [str(tmp_path), "--out", str(tmp_path / "out")]
    error = refused(capsys, *command)
    assert "3 of 20 images can't be read: " in error
    for row, reason in (4, "no image in it"), (6, "only the path a.png is in it, not the image"), (8, "corrupt"):
        assert f"train-0.parquet: row {row}: {reason}" in error
    assert main(["parquet", *command, "--skip-broken", "--workers", "1"]) == 0
    assert "broken: 3" in capsys.readouterr().out


def test_a_damaged_page_is_said_with_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train-0.parquet"
    write_classes(path, range(40))
    column = pq.ParquetFile(path).metadata.row_group(3).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = bytes(40)
    path.write_bytes(data)
    error = refused(capsys, str(tmp_path), "--out", str(tmp_path / "out"))
    assert "4 of 40 images can't be read: " in error
    for row in range(13, 17):
        assert f"train-0.parquet: row {row}: not readable (" in error


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        ({"image": BYTES, "label": [0, 1] * 10, "more": BYTES}, [], "image and more could each be the column of"),
        ({"url": ["a"] * 20, "label": [0, 1] * 10}, [], "none of url, label seems to be the column of images"),
        ({"image": BYTES, "class": [0, 1] * 10}, [], "none of image, class seems to be the column of labels; name it"),
        ({"image": BYTES, "label": [0, 1] * 10}, ["--label-column", "kind"], "no column 'kind' in it, only image"),
        ({"image": BYTES, "label": [0, 1] * 10}, ["--image-column", "png"], "no column 'png' in it, only image, label"),
        ({"image": BYTES, "label": [0] * 20}, [], "only '0' has images for training; two classes"),
        ({"image": BYTES, "label": [-1] * 20}, [], "no row of the split train has a label; name their column with"),
        ({"image": BYTES, "label": [0, 1] * 10}, ["--classes", "a,b,1"], "row 1: the label '0' is none of the 3"),
        ({"image": BYTES, "label": [0, 1] * 10}, ["--mask-column", "m"], "--mask-column needs --classes"),
        ({"image": BYTES, "label": [0, 1] * 10}, ["--mask-column", "m", "--classes", "a,b"], "no column 'm' in it"),
        ({"image": BYTES, "label": [0, 1] * 10}, ["--binary"], "--ignore and --binary are about masks"),
        ({"image": BYTES[:0], "label": pa.array([], pa.int64())}, [], "no row of the split train has a label"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], flags: list[str], message: str
) -> None:
    write(tmp_path / "train-0.parquet", columns)
    assert message in refused(capsys, str(tmp_path), *flags, "--out", str(tmp_path / "out"))


def test_a_label_beyond_the_named_classes_is_refused_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in 3, -2:
        columns = {"image": images(range(3)), "label": [0, 1, label]}
        write(tmp_path / "train-0.parquet", columns, {"label": CLASS_LABEL})
        error = refused(capsys, str(tmp_path), "--out", str(tmp_path / "out"))
        assert f"train-0.parquet: row 3: label is {label}, and there are 3 classes; correct it" in error


def test_places_without_such_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "nowhere: no such file or folder" in refused(capsys, str(tmp_path / "nowhere"), *out)
    for place in "hf://datasets/beans", "https://x/train-0.parquet":
        assert f"{place}: only paths and s3:// can be read; download it first" in refused(capsys, place, *out)
    assert "no bucket in it; write s3://BUCKET/PREFIX" in refused(capsys, "s3://", *out)
    (tmp_path / "a.csv").write_text("path,label\n")
    assert "no .parquet file lies there; name the folder with train-*.parquet" in refused(capsys, str(tmp_path), *out)
    write_classes(tmp_path / "hf/test-0.parquet", range(6))
    assert "no file is of the split train, only of test" in refused(capsys, str(tmp_path / "hf"), *out)
    assert "no file is of the split val, only of test" in refused(capsys, str(tmp_path / "hf"), "--split", "val", *out)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/train-0.parquet").write_bytes((tmp_path / "hf/test-0.parquet").read_bytes()[:-9])
    assert "train-0.parquet: not a readable Parquet file (" in refused(capsys, str(tmp_path / "bad"), *out)
    write_classes(tmp_path / "hf/train-0.parquet", range(6))
    write_classes(tmp_path / "hf/extra-0.parquet", range(6, 9))
    assert main(["parquet", str(tmp_path / "hf"), "--split", "test", *out, "--workers", "1"]) == 0
    assert "of no split: 1 (extra-0.parquet)" in capsys.readouterr().out

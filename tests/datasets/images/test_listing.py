from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files.urls import write_file
from datasets.images.labelled import LabelledFiles, file_batches, labelled_files
from datasets.images.listing import ImageFile, find_images
from datasets.prepare.layout import LeftOut
from datasets.prepare.table_labels import TableColumns
from tests.support.shards import image_of, mask_of, png, write_shards, write_tar

CLASSES = ("ant", "bee", "cow")
TREE = {
    "ant/0.png": 0,
    "ant/deep/er/1.png": 1,
    "bee/2.PNG": 2,
    "cow/3.png": 3,
}
"""path -> number of the image"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, number in TREE.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(png(image_of(1, number)))
    (tmp_path / "tree/ant/.hidden.png").write_bytes(b"")
    (tmp_path / "tree/ant/notes.txt").write_text("no image")
    (tmp_path / "tree/beside.png").write_bytes(b"in no class")
    return tmp_path / "tree"


def labelled(place: object, kind: str = "classification", columns: TableColumns | None = None) -> LabelledFiles:
    return labelled_files(str(place), kind=kind, classes=CLASSES, columns=columns or TableColumns())[0]


def read(files: LabelledFiles) -> list[tuple[bytes, int]]:
    return [(sample.data, sample.label) for sample in files.read_each(range(files.manifest.num_samples))]


EXPECTED = [(png(image_of(1, number)), CLASSES.index(name.split("/")[0])) for name, number in TREE.items()]


def test_a_folder_is_searched_to_its_depth_by_the_rules_of_prepare(tree: Path) -> None:
    left_out = LeftOut()
    found = [file.name.removeprefix(f"{tree}/") for file in find_images(str(tree), left_out)]
    assert found == [*list(TREE)[:2], "bee/2.PNG", "beside.png", "cow/3.png"]
    assert {*left_out.reasons} == {"hidden or system files", "not an image: .txt"}


def test_folder_tar_table_and_s3_are_the_same_samples(tree: Path, s3_uri: str) -> None:
    write_tar(tree.parent / "all.tar", {name: (tree / name).read_bytes() for name in TREE})
    lines = [f"{tree / name if number % 2 else Path('tree') / name},{CLASSES.index(name[:3])}"
             for name, number in TREE.items()]  # fmt: skip
    (tree.parent / "numbers.csv").write_text("\n".join(["path,label", *lines]))
    (tree.parent / "names.csv").write_text(
        "\ufefffile,species,more\n" + "".join(f'"tree/{name}",{name[:3]},"a\nb"\n' for name in TREE)
    )
    for path in tree.rglob("*"):
        if path.is_file():
            write_file(f"{s3_uri}/tree/{path.relative_to(tree)}", path.read_bytes())
    write_file(f"{s3_uri}/shards/all.tar", (tree.parent / "all.tar").read_bytes())
    rows = (f"{row},tree/{n},{n[:3]}\n".encode() for row, n in enumerate(TREE))
    write_file(
        f"{s3_uri}/table.csv", b",path,label\n" + b"".join(rows)
    )  # with a column of numbers, as pandas writes it
    for place in (tree, tree.parent / "all.tar", tree.parent / "numbers.csv", f"{s3_uri}/tree", f"{s3_uri}/tree/",
                  f"{s3_uri}/shards", f"{s3_uri}/shards/all.tar", f"{s3_uri}/table.csv"):  # fmt: skip
        assert read(labelled(place)) == EXPECTED, place
    named = labelled(tree.parent / "names.csv", columns=TableColumns(path="file", label="species"))
    assert read(named) == EXPECTED


def test_a_tars_labels_are_those_that_jobs_index_reads(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [5], classes=3)
    (folder / "manifest.json").unlink()
    assert labelled(folder).labels.tolist() == [0, 1, 2, 0, 1]
    write_tar(tmp_path / "names.tar", {"a.png": png(image_of(1, 1)), "a.txt": b"cow", "a.mask.png": b"no sample"})
    assert labelled(tmp_path / "names.tar").labels.tolist() == [2]


def test_a_table_of_masks(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(image_of(1, number)))
        (tmp_path / f"{number}.mask.png").write_bytes(png(mask_of(1, number)))
    (tmp_path / "masks.csv").write_text("path,label\n" + "".join(f"{n}.png,{n}.mask.png\n" for n in range(3)))
    files = labelled(tmp_path / "masks.csv", kind="segmentation")
    (batch,) = file_batches(files, DataConfig(loader_workers=0), image_size=32, batch_size=8)
    assert batch.masks is not None
    assert batch.masks.shape == (3, 32, 32)
    assert batch.masks.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_every_sample_once_and_leave_out_what_is_damaged(tree: Path, workers: int) -> None:
    (tree / "bee/broken.png").write_bytes(b"\x89PNG no image")
    config = DataConfig(loader_workers=workers)
    batches = list(file_batches(labelled(tree), config, image_size=32, batch_size=2))
    assert [index for batch in batches for index in batch.stream_index.tolist()] == [0, 1, 2, 4]
    (damaged,) = (sample for batch in batches for sample in batch.damaged)
    assert damaged.message.startswith(f"{tree}/bee/broken.png: corrupt")


def test_mistakes_are_one_line(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts/a").mkdir(parents=True)
    (tmp_path / "texts/a/b.txt").write_text("")
    (tmp_path / "splits/val/ant").mkdir(parents=True)
    (tmp_path / "splits/val/ant/0.png").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("path,label\n\xe9,1".encode("latin-1"))
    (tmp_path / "hole.csv").write_text("path,label\n,1\n")
    (tmp_path / "quote.csv").write_text('path,label\n"a,1\n')
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "gone.csv").write_text("path,label\nnone.png,ant\n")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.add(tree / "ant", "ant")
    write_tar(tmp_path / "bare.tar", {"0.png": b""})
    write_tar(tmp_path / "several.tar", {"0.png": b"", "0.labels": b"0 2"})
    (tree.parent / "kiwi").mkdir()
    (tree.parent / "kiwi/kiwi").symlink_to(tree / "ant")
    for place, message in (
        (tmp_path / "none", "none: there is no such file or folder"),
        ("ftp://there/x", "only local paths and s3:// can be read"),
        (tmp_path / "empty", "empty: no image files lie there"),
        (tmp_path / "texts", r"1 left out: not an image: \.txt, such as a/b\.txt"),
        (tmp_path / "splits", "it holds the splits val; name one, such as .*/splits/val"),
        (tmp_path / "latin.csv", "not text in UTF-8"),
        (tmp_path / "hole.csv", "line 2: the column 'path' is empty"),
        (tmp_path / "quote.csv", "quote.csv: line [12]: unexpected end of data"),
        (tmp_path / "columns.csv", "no column 'path' in it, only a, b"),
        (tmp_path / "none.csv", "there is no such file"),
        (tmp_path / "packed.tar.gz", "this one is compressed; unpack it"),
        (tmp_path / "bare.tar", "it has no label; the model's classes are ant, bee, cow"),
        (tmp_path / "several.tar", r"several\.tar:0\.png: it has no label"),
        (tmp_path / "kiwi", "the label 'kiwi' is none of the model's 3 classes"),
    ):
        with pytest.raises(DataError, match=message) as error:
            labelled(place)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"none\.png: it can't be read"):
        read(labelled(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match="only shards and tables"):
        labelled(tree, kind="segmentation")


def test_parquet_is_read_as_csv_is(tmp_path: Path, s3_uri: str) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(image_of(1, number)))
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    columns = {"path": paths, "label": [1, 0, 2], "several": [["ant", "cow"], [], ["bee"]],
               "ant": [1, 0, 0], "bee": [0, 0, 1], "cow": [1, 0, 0], "size": [0.5, 2.0, -3.0]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    write_file(f"{s3_uri}/t.parquet", (tmp_path / "t.parquet").read_bytes())
    for place in (tmp_path / "t.parquet", f"{s3_uri}/t.parquet"):
        assert labelled(place).labels.tolist() == [1, 0, 2]
        for told in (TableColumns(label="several"), TableColumns(flags=("ant", "bee", "cow"))):
            assert labelled(place, "multilabel", told).labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
        numbers = labelled_files(str(place), kind="regression", classes=("size",), columns=TableColumns())[0]
        assert [sample.targets for sample in numbers.read_each(range(3))] == [(0.5,), (2.0,), (-3.0,)]
        assert [file.name for file in find_images(str(place), LeftOut())] == paths
    for classes, kind, told, said in (
        (CLASSES, "classification", TableColumns(label="several"), "the column 'several' holds lists"),
        (CLASSES, "classification", TableColumns(targets=("size",)), "--targets is for regression"),
        (("size", "age"), "regression", TableColumns(), "no column 'age' in it, only .*; name it with --targets"),
        (("size", "age"), "regression", TableColumns(targets=("size",)), "names 1 columns, and the model estimates 2"),
        (("path",), "regression", TableColumns(), "row 1: the column 'path' holds .*, not a number"),
    ):
        with pytest.raises(DataError, match=said) as error:
            labelled_files(str(tmp_path / "t.parquet"), kind=kind, classes=classes, columns=told)
        assert "\n" not in str(error.value)


def test_the_rows_of_a_split_are_read_alone_and_never_all_of_several(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(image_of(1, number)))
    table = tmp_path / "t.csv"
    table.write_text("path,label,split\n0.png,ant,train\n1.png,bee,Valid\n2.png,cow,train\n3.png,cow,val\n")

    def of(columns: TableColumns, split: str) -> list[int]:
        found = labelled_files(str(table), kind="classification", classes=CLASSES, columns=columns, split=split)[0]
        return [int(label) for label in found.labels]

    assert of(TableColumns(), "val") == [1, 2]
    assert of(TableColumns(split=""), "") == [0, 1, 2, 2]
    with pytest.raises(DataError, match=r"t\.csv: it holds the splits train, val; name one with --split, or leave"):
        of(TableColumns(), "")
    with pytest.raises(DataError, match=r"t\.csv: no row is of the split test, only of train and val"):
        of(TableColumns(), "test")
    with pytest.raises(DataError, match=r"t\.csv: no column '' in it says which rows are of val; leave --split out or"):
        of(TableColumns(split=""), "val")
    table.write_text("path,label,split\n1.png,bee,val\n3.png,cow,val\n")
    assert of(TableColumns(), "") == [1, 2]


def test_a_part_of_a_file_that_was_cut_since_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    file = ImageFile("a.tar:key.jpg", str(tmp_path / "a.tar"), 3, 5)
    with pytest.raises(DataError, match=r"a\.tar: cut short within a\.tar:key\.jpg"):
        file.read()


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    cells = ("bee|ant", "", " cow ", "2|2|", "0")
    for number in range(len(cells)):
        (tmp_path / f"{number}.png").write_bytes(png(image_of(1, number)))
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells)))
    found = labelled(table, "multilabel", TableColumns(separator="|"))
    numbers = [tuple(sorted(CLASSES.index(name) for name in names))
               for names in (("ant", "bee"), (), ("cow",), (CLASSES[2],), (CLASSES[0],))]  # fmt: skip
    assert [sample.labels for sample in found.read_each(range(len(cells)))] == numbers
    assert found.manifest.class_counts == tuple(sum(k in row for row in numbers) for k in range(3))
    with pytest.raises(
        DataError, match=r"0.png: the label 'bee\|ant' is none of the model's 3 classes .* --label-separator"
    ):
        labelled(table, "multilabel")
    with pytest.raises(
        DataError, match="--label-separator is for multilabel, and the model is for classification; leave it out"
    ):
        labelled(table, columns=TableColumns(separator="|"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_read_as_prepare_reads_it(tmp_path: Path, separator: str) -> None:
    (tmp_path / "t.csv").write_text(f"\ufeffpath{separator} label\na.png{separator} ant \n\nb.png{separator}bee\n")
    found = labelled(tmp_path / "t.csv")
    assert [(file.name, *file.labels) for file in found.files] == [
        (str(tmp_path / "a.png"), "ant"),
        (str(tmp_path / "b.png"), "bee"),
    ]
    (tmp_path / "t.csv").write_text(f"path{separator}label\na.png\n")
    with pytest.raises(DataError, match="line 2: 1 fields, the header has 2"):
        labelled(tmp_path / "t.csv")

"""Targets of samples: from a table over `.targets` members and the index to a batch's numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.loading.loader import build_eval_loader
from datasets.prepare.report import report_of
from datasets.prepare.sources.csv_table import CsvTable
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.describe import target_statistics, write_manifest
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.label_text import parse_targets
from datasets.shards.resolve import load_manifest
from datasets.shards.tar_index import ShardIndex, scan_shard
from tests.support.shards import image_of, png, write_samples, write_tar

ONE = WriterConfig(workers=1, samples_per_shard=7)


def table_of(folder: Path, count: int = 20, *, sep: str = ",") -> Path:
    lines = [sep.join(("path", "age", "size of it", "split"))]
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(image_of(1, number)))
        split = "val" if number % 4 == 0 else "train"
        lines.append(sep.join((f"{number}.png", str(number), f"{-number / 8}e3", split)))
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


def test_a_table_of_numbers_becomes_batches_of_numbers(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    source = CsvTable(table=str(table), targets=("age", "size of it"))
    manifests = prepare(source, tmp_path / "out", ONE)
    manifest = load_manifest(str(tmp_path / "out/val"))
    assert (manifest.kind, manifest.classes) == ("regression", ("age", "size of it"))
    assert manifest.targets == manifests["val"].targets
    ages = np.array([0, 4, 8, 12, 16])
    expected = [(ages.mean(), ages.std()), ((-ages * 125).mean(), (ages * 125).std())]
    np.testing.assert_allclose(manifest.targets, expected, rtol=1e-5)
    data = DataConfig(val=str(tmp_path / "out/val"), loader_workers=0)
    (batch,) = build_eval_loader(data, image_size=32, batch_size=9, rank=0, world_size=1)
    assert batch.labels.dtype == torch.float64
    assert sorted(batch.labels[:, 0].tolist()) == ages.tolist()
    assert torch.equal(batch.labels[:, 1], batch.labels[:, 0] * -125)
    assert report_of(manifest)[2] == (
        "  val: 5 images: age 0 to 16, mean 8, deviation 5.66; size of it -2000 to 0, mean -1000, deviation 707"
    )


def test_the_shards_are_indexed_again_as_they_were_written(tmp_path: Path) -> None:
    prepare(CsvTable(table=str(table_of(tmp_path)), targets=("age", "size of it")), tmp_path / "out", ONE)
    folder = str(tmp_path / "out/train")
    before = load_manifest(folder)
    again = index_shards(folder, folder, IndexRules())
    assert (again.kind, again.classes, again.targets) == (before.kind, before.classes, before.targets)
    elsewhere = index_shards(folder, str(tmp_path / "index"), IndexRules())
    assert elsewhere.classes == ("target1", "target2")


def test_one_target_is_named_alone(tmp_path: Path) -> None:
    prepare(CsvTable(table=str(table_of(tmp_path)), targets=("age",)), tmp_path / "out", ONE)
    folder = str(tmp_path / "out/train")
    assert index_shards(folder, str(tmp_path / "index"), IndexRules(classes="years")).classes == ("years",)
    with pytest.raises(DataError, match="its samples have 1 targets, and 2 names are given"):
        index_shards(folder, str(tmp_path / "index"), IndexRules(classes="years,days"))
    with pytest.raises(DataError, match=r"^--classes data/years: no such file or folder; a target of this name"):
        index_shards(folder, str(tmp_path / "index"), IndexRules(classes="data/years"))
    with_slash = IndexRules(classes='["USD/m2"]')
    assert index_shards(folder, str(tmp_path / "index"), with_slash).classes == ("USD/m2",)


def test_a_sample_of_today_is_not_two_minutes_off(tmp_path: Path) -> None:
    times = [1764413609.25 + 17 * number for number in range(4)]
    image = png(image_of(1, 1))
    write_samples(
        tmp_path / "val",
        [4],
        lambda number: {"png": image, "targets": repr(times[number]).encode()},
        classes=["taken"],
        kind="regression",
    )
    data = DataConfig(val=str(tmp_path / "val"), loader_workers=0)
    (batch,) = build_eval_loader(data, image_size=32, batch_size=9, rank=0, world_size=1)
    assert batch.labels[:, 0].tolist() == times


def shard_of(values: list[float]) -> ShardIndex:
    targets = np.array(values, dtype=np.float64)[:, None]
    return ShardIndex(np.empty(0), (), np.empty(0), Counter(), {}, "", targets=targets)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=300), random=st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_the_order_of_a_sum(values: list[float], random: Random) -> None:
    ((mean, deviation),) = target_statistics([shard_of(values)])
    random.shuffle(values)
    ((other, other_deviation),) = target_statistics([shard_of(values)])
    assert other == pytest.approx(mean, rel=1e-11, abs=1e-9)  # at worst the next one of 12 digits
    assert other_deviation == pytest.approx(deviation, rel=1e-5)


def test_statistics_have_no_last_bits_and_a_constant_has_no_deviation() -> None:
    values = np.random.default_rng(0).normal(5, 1, 1000)
    orders = [np.random.default_rng(seed).permutation(values) for seed in range(20)]
    assert len({target_statistics([shard_of(list(order))]) for order in orders}) == 1
    assert target_statistics([shard_of([0.1] * 10)]) == ((0.1, 0.0),)


def test_names_of_classes_do_not_become_names_of_targets(tmp_path: Path) -> None:
    def indexed(ending: str, *texts: bytes) -> tuple[str, ...]:
        image = png(image_of(1, 1))
        members = {f"{number}.{name}": data for number, text in enumerate(texts) for name, data in
                   (("png", image), (ending, text))}  # fmt: skip
        write_tar(tmp_path / "a.tar", members)
        return index_shards(str(tmp_path), str(tmp_path), IndexRules()).classes

    write_tar(tmp_path / "a.tar", {"0.png": png(image_of(1, 1)), "0.cls": b"1"})
    write_manifest(tmp_path, ["a.tar"], classes=["cat", "dog"])
    assert indexed("cls", b"0", b"1") == ("cat", "dog")
    assert indexed("targets", b"0.5 1", b"0.7 2") == ("target1", "target2")
    assert indexed("targets", b"0.5", b"0.7") == ("target1",)  # another number of them: neither
    write_manifest(tmp_path, ["a.tar"], classes=["weight"], kind="regression")
    assert indexed("targets", b"3", b"4") == ("weight",)
    assert indexed("cls", b"0", b"0") == ("0",)


@given(numbers=st.lists(st.floats(-3.4e38, 3.4e38), min_size=1, max_size=5))
def test_any_numbers_are_written_and_read_as_they_are(numbers: list[float]) -> None:
    assert parse_targets(" ".join(map(repr, numbers)).encode(), "x") == tuple(numbers)


@pytest.mark.parametrize("text", [b"", b"1  2", b"nan", b"1 inf", b"1e300", b"1,2", b"one", b"1\n2", "½".encode()])
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.png": png(image_of(1, 1)), "a.targets": text})
    with pytest.raises(DataError, match=r"t.tar: the targets of sample 'a' are .*, not numbers with one space"):
        scan_shard(RemoteFile(str(path), 0, ""))


def test_samples_of_different_numbers_of_targets_are_refused(tmp_path: Path) -> None:
    image = png(image_of(1, 1))
    write_tar(tmp_path / "a.tar", {"a.png": image, "a.targets": b"1", "b.png": image, "b.targets": b"1 2"})
    with pytest.raises(DataError, match="sample 'b' has 2 targets, others have 1"):
        scan_shard(RemoteFile(str(tmp_path / "a.tar"), 0, ""))


@pytest.mark.parametrize(
    ("cell", "message"),
    [("", "line 2: the column 'age' holds '', not a number"), ("nan", "'age' holds 'nan'"), ("old", "holds 'old'")],
)
def test_cells_that_are_no_numbers_are_named(tmp_path: Path, cell: str, message: str) -> None:
    table = table_of(tmp_path)
    table.write_text(table.read_text().replace("0.png,0,", f"0.png,{cell},", 1))
    with pytest.raises(DataError, match=message):
        CsvTable(table=str(table), targets=("age",)).plan()


def test_columns_that_are_not_there_and_flags_that_do_not_go_together(tmp_path: Path) -> None:
    table = str(table_of(tmp_path))
    with pytest.raises(DataError, match=r"no column 'weight'.*--targets"):
        CsvTable(table=table, targets=("weight",)).plan()
    with pytest.raises(ValueError, match="--targets are numbers: leave out"):
        CsvTable(table=table, targets=("age",), classes="a,b")
    with pytest.raises(ValueError, match="name each column once"):
        CsvTable(table=table, targets=("age", "age"))

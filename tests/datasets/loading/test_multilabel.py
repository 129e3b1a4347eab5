"""Samples of several labels: from the member `.labels` over the index to a batch's multi-hot labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from datasets.checks import check_data
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.loader import build_eval_loader
from datasets.prepare.pyramid import write_copies
from datasets.prepare.report import report_of
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.label_text import parse_labels
from datasets.shards.resolve import load_manifest
from tests.support.shards import image_of, labels_of, write_multilabel_shards, write_tar

JPEG = simplejpeg.encode_jpeg(image_of(1, 1))


def config_of(folder: Path) -> DataConfig:
    return DataConfig(train=str(folder), val=str(folder), num_lanes=2, loader_workers=0, cache_dir="none")


def hot_rows(folder: Path) -> list[list[int]]:
    loader = build_eval_loader(config_of(folder), image_size=32, batch_size=7, rank=0, world_size=1)
    return [row for batch in loader for row in batch.labels.tolist()]


def test_batches_are_multi_hot_and_counts_are_of_every_label(tmp_path: Path) -> None:
    folder = write_multilabel_shards(tmp_path / "s", [9, 7])
    assert hot_rows(folder) == [[int(label in labels_of(n)) for label in range(3)] for n in range(16)]
    manifest = load_manifest(str(folder))
    assert (manifest.kind, manifest.class_counts) == ("multilabel", (8, 8, 8))
    assert [(shard.labelled, shard.max_label) for shard in manifest.shards] == [(9, 2), (7, 2)]


def test_indexing_finds_what_writing_found(tmp_path: Path) -> None:
    folder = write_multilabel_shards(tmp_path / "s", [9, 7])
    before = load_manifest(str(folder))
    after = index_shards(str(folder), str(folder), IndexRules())
    assert (after.fingerprint, after.class_counts) == (before.fingerprint, before.class_counts)


def test_copies_have_the_same_labels(tmp_path: Path) -> None:
    folder = write_multilabel_shards(tmp_path / "s", [9])
    write_copies(folder, [32], workers=1)
    assert hot_rows(folder / "short-32") == hot_rows(folder)
    assert load_manifest(str(folder / "short-32")).class_counts == load_manifest(str(folder)).class_counts


@given(st.sets(st.integers(0, 2**31 - 1)))
def test_labels_are_read_as_they_are_written(labels: set[int]) -> None:
    text = " ".join(map(str, sorted(labels))).encode()
    assert parse_labels(text, "") == parse_labels(text + b"\n", "") == tuple(sorted(labels))


@pytest.mark.parametrize("text", [b"1 0", b"1 1", b"cat", b"-1", b"1, 2", b"0  1", b" 1", b"1.0", b"01", b"2147483648"])
def test_other_texts_are_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "a.labels": text})
    with pytest.raises(DataError, match=r"s.tar: the labels of sample 'a' are b'.*', not class numbers in ascending"):
        index_shards(str(tmp_path), str(tmp_path), IndexRules())


def test_a_sample_without_labels_file_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "a.labels": b"0 1", "b.jpg": JPEG, "c.jpg": JPEG, "c.labels": b""})
    told: list[str] = []
    index_shards(str(tmp_path), str(tmp_path), IndexRules(), tell=told.append)
    assert told == [
        f"warning: 1 of 3 samples have no list of labels (.labels), such as 'b' in {tmp_path / 's.tar'}",
    ]
    with pytest.raises(DataError, match=r"1 of 3 samples have no list of labels; each image needs a .labels file"):
        check_data(config_of(tmp_path), batch_sizes=[2], worker_counts=[1])


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "a.labels": b"0 7", "b.jpg": JPEG, "b.labels": b""})
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    index_shards(str(tmp_path), str(tmp_path), IndexRules(classes=str(tmp_path / "classes.txt")))
    with pytest.raises(DataError, match="a label is 7, but the manifest's classes allow 0 to 1"):
        check_data(config_of(tmp_path), batch_sizes=[2], worker_counts=[1])


@dataclass(frozen=True)
class Several(Source):
    """Twelve images with `labels_of` their numbers."""

    name: ClassVar[str] = "several"

    def plan(self) -> Plan:
        items = tuple(Item(f"{n:02d}.jpg", -1, labels=labels_of(n)) for n in range(12))
        splits = {"train": items[:8], "val": items[8:]}
        return Plan(classes=("stripes", "spots", "waves"), splits=splits, kind="multilabel")

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        return "jpg", simplejpeg.encode_jpeg(image_of(0, int(item.name[:2])))


def test_a_source_of_several_labels_is_prepared_and_reported(tmp_path: Path) -> None:
    manifests = prepare(Several(), tmp_path, WriterConfig(workers=1))
    assert (manifests["train"].kind, manifests["train"].class_counts) == ("multilabel", (4, 4, 4))
    assert report_of(manifests["train"])[1] == "  train: 12 labels: stripes 4, spots 4, waves 4"
    assert sorted(hot_rows(tmp_path / "train")) == sorted([int(k in labels_of(n)) for k in range(3)] for n in range(8))

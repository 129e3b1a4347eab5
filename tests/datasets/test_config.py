from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.checks import check_data, data_fingerprint
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.sample_order import sample_order
from datasets.shards.resolve import load_manifest
from tests.support.batches import train_batches
from tests.support.shards import write_shards


def check(folder: Path, *, val: Path | None = None, batch: int = 24, workers: int = 2, **changes: Any) -> None:
    config = DataConfig(train=str(folder), val=str(val or folder), **changes)
    check_data(config, batch_sizes=[batch], worker_counts=[workers])


def test_good_data_passes_and_returns_both_manifests(shard_folder: Path) -> None:
    config = DataConfig(train=str(shard_folder), val=f"{shard_folder}/part-000002.tar")
    train, val = check_data(config, batch_sizes=[12, 24], worker_counts=[1, 2, 3, 4, 6, 12])
    assert (train.num_samples, val.num_samples) == (137, 23)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (100, "batch_size 100 is not a multiple of data.num_lanes=12; nearest: 96 or 108"),
        (7, "nearest: 12"),
        (0, "batch_size 0"),
    ],
)
def test_batches_that_the_lanes_do_not_divide(shard_folder: Path, batch: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(shard_folder, batch=batch)


@pytest.mark.parametrize("workers", [5, 8, 24, 0])
def test_workers_that_do_not_divide_the_lanes(shard_folder: Path, workers: int) -> None:
    with pytest.raises(DataError, match=rf"{workers} workers can't share .*use 1, 2, 3, 4, 6, 12 workers"):
        check(shard_folder, workers=workers)


def test_labels_missing_or_out_of_range(tmp_path: Path) -> None:
    unlabelled = write_shards(tmp_path / "unlabelled", [30], labels=False)
    with pytest.raises(DataError, match=r"data\.train: .*part-000000\.tar: 30 of 30 samples have no label"):
        check(unlabelled)
    beyond = write_shards(tmp_path / "beyond", [30], first_label=2)
    with pytest.raises(DataError, match=r"data\.train: .*a label is 5, but .* allow 0 to 3"):
        check(beyond)


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_label_out_of_range_names_shard_and_key_when_it_is_read(tmp_path: Path, loader_workers: int) -> None:
    folder = write_shards(tmp_path / "beyond", [30], first_label=2)
    config = DataConfig(train=str(folder), loader_workers=loader_workers)
    loader = train_batches(config, batch_size=24, stop=24)
    with pytest.raises(DataError, match=r"part-000000\.tar: sample '000000\d\d': its label is [45]") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_only_with_the_same_samples_in_the_same_order(tmp_path: Path, shard_folder: Path) -> None:
    other = load_manifest(str(write_shards(tmp_path, [50, 64, 23], classes=3)))
    manifest = load_manifest(str(shard_folder))
    order = sample_order(DataConfig(num_lanes=4), manifest, seed=1)
    assert order.fingerprint == sample_order(DataConfig(num_lanes=4), other, seed=1).fingerprint
    later = sample_order(DataConfig(num_lanes=4), manifest, seed=2)
    prints = {data_fingerprint(*one) for one in ((order, manifest), (order, other), (later, manifest))}
    assert len(prints) == 3


def test_other_classes_in_val_and_too_few_samples(tmp_path: Path, shard_folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val has different classes than data\.train"):
        check(shard_folder, val=write_shards(tmp_path / "other", [30], classes=3))
    with pytest.raises(DataError, match=r"has 10 samples for data\.num_lanes=12"):
        check(write_shards(tmp_path / "few", [10]))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_lanes": 0},
        {"block_size": 0},
        {"window_blocks": -1},
        {"loader_workers": -1},
        {"prefetch_batches": 0},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.5, 0.2)},
        {"crop_ratio": (2.0, 1.0)},
        {"randaugment_layers": -1},
    ],
)
def test_fields_out_of_range_are_named_with_their_value(changes: dict[str, Any]) -> None:
    (name, value), *_ = changes.items()
    with pytest.raises(ValueError, match=rf"data\.{name} is ") as caught:
        replace(DataConfig(), **changes)
    assert str(value) in str(caught.value)

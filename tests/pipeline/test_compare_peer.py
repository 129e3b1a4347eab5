"""The twin that timm's building blocks train, in this process."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.recipes import fonts_small, unet_demo
from pipeline.compare.config import CompareError
from pipeline.compare.peer import Split, check_peer, train_with_timm
from pipeline.config import TrainConfig
from tests.datasets.images import write_shards


def config() -> TrainConfig:
    base = fonts_small()
    stages = tuple(
        replace(base.stages[-1], image_size=32, epochs=4, mixup_alpha=0, randaugment_magnitude=0) for _ in range(2)
    )
    cluster = replace(base.cluster, num_workers=1)
    return replace(base, stages=stages, cluster=cluster, data=replace(base.data, crop_area=(0.5, 1.0)))


def test_the_twin_learns_the_shards_in_as_many_steps(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [60, 60])
    write_shards(tmp_path / "val", [30])
    train, val = (
        Split(str(tmp_path / name), tuple(sorted(path.name for path in (tmp_path / name).glob("*.tar"))), samples)
        for name, samples in (("train", 120), ("val", 30))
    )
    found = train_with_timm(config(), train, val, num_classes=4, samples_per_epoch=120)
    rows = found["evaluations"]
    assert [row["cursor"] for row in rows] == [120 * epoch for epoch in range(1, 9)]
    assert found["samples"] == 960
    assert rows[-1]["pixels"] == 960 * 32**2
    assert all(before["train_s"] < after["train_s"] for before, after in pairwise(rows))
    assert round(rows[-1]["score"] * 30, 6).is_integer()  # every validation image once
    assert rows[-1]["score"] > 0.5  # a guess gives a quarter


def test_what_has_no_twin_is_refused_with_the_cure() -> None:
    check_peer(config(), "val/accuracy")
    with pytest.raises(CompareError, match=r"one process; give --cluster\.num-workers 1"):
        check_peer(fonts_small(), "val/accuracy")
    with pytest.raises(CompareError, match="trains classifiers"):
        check_peer(unet_demo(), "val/miou")
    with pytest.raises(CompareError, match="local folders"):
        check_peer(replace(config(), data=replace(config().data, train="s3://b/p")), "val/accuracy")

"""What a report says of a dataset."""

from __future__ import annotations

import pytest

from datasets.prepare.report import DataReport


def test_one_image_is_no_images() -> None:
    assert "  val: 1 image: a 1, b 0" in DataReport(images={"val": {"a": 1, "b": 0}}).lines()
    assert "  val: 1 image" in DataReport(images={}, masked={"val": 1}).lines()
    assert "  val: 1 label: a 1" in DataReport(images={"val": {"a": 1}}, unit="labels").lines()


@pytest.mark.parametrize(
    ("extra", "words"),
    [(0, "300 images of 30 classes, 10 of each"), (5, "305 images of 30 classes, from 10 (c01) to 15 (c00)")],
)
def test_many_classes_are_one_line(extra: int, words: str) -> None:
    counts = {f"c{number:02}": 10 for number in range(30)}
    counts["c00"] += extra
    lines = DataReport(images={"train": counts}).lines()
    assert f"  train: {words}" in lines

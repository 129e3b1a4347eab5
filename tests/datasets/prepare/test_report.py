"""What a report says of a dataset."""

from __future__ import annotations

import pytest

from datasets.prepare.report import DataReport


@pytest.mark.parametrize(
    ("extra", "words"),
    [(0, "300 images of 30 classes, 10 of each"), (5, "305 images of 30 classes, from 10 (c01) to 15 (c00)")],
)
def test_many_classes_are_one_line(extra: int, words: str) -> None:
    counts = {f"c{number:02}": 10 for number in range(30)}
    counts["c00"] += extra
    lines = DataReport(images={"train": counts}).lines()
    assert f"  train: {words}" in lines

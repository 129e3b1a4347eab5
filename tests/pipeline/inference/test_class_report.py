"""The report of an evaluation as JSON: a multi-label task's own columns are in its report alone."""

from __future__ import annotations

import torch

from pipeline.inference.class_report import Report
from pipeline.training.class_scores import ClassRow, class_rows

OWN = {"threshold", "average_precision"}


def test_only_several_labels_have_thresholds_and_average_precisions() -> None:
    counts = torch.tensor([[3, 1], [0, 0]])
    values = Report(metrics={}, classes=class_rows(counts, ("cat", "dog")), confusion=counts).to_dict()
    assert all(not OWN & {*row} for row in values["classes"])
    assert values["classes"][1]["recall"] is None
    never = ClassRow(name="ant", count=0, recall=None, precision=None, f1=None, iou=None, threshold=0.5)
    (row,) = Report(metrics={}, classes=(never,), confusion=None).to_dict()["classes"]
    assert {*row} >= OWN
    assert row["average_precision"] is None

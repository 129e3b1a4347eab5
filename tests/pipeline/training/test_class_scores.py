from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
)

from datasets.loading.batch import Batch
from pipeline.task_config import ClassificationConfig
from pipeline.training.class_scores import class_rows
from pipeline.training.classification import ClassificationTask


def test_class_rows_by_hand() -> None:
    confusion = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    first, second, absent = class_rows(confusion, ("a", "b", "c"))
    assert (first.count, first.recall, first.precision) == (4, 3 / 4, 3 / 5)
    assert (second.f1, second.iou) == (8 / 11, 4 / 7)
    assert (absent.count, absent.recall, absent.precision, absent.f1, absent.iou) == (0, None, None, None, None)


def scores_of(logits: torch.Tensor, labels: torch.Tensor, *, cuts: tuple[int, ...] = ()) -> dict[str, float]:
    """What an evaluation in batches that are cut there measures."""
    names = tuple(f"class {label}" for label in range(logits.shape[1]))
    task = ClassificationTask(ClassificationConfig(), names)
    metrics = task.metrics()
    pixels = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    for part in torch.arange(len(labels)).tensor_split(sorted(cuts)):
        task.update(metrics, logits[part], Batch(pixels[part], labels[part], part))
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert {*values} == {*task.config.metric_names(names)}
    return values


@settings(max_examples=40, deadline=None)
@given(
    classes=st.sampled_from((2, 5, 6, 30)),
    count=st.integers(1, 60),
    scale=st.sampled_from((0.0, 0.3, 4.0, 200.0)),  # undecided to certain: a confidence of exactly 1 has its own bin
    seed=st.integers(0, 1000),
    cut=st.integers(0, 60),
)
def test_scores_are_torchmetrics_own(classes: int, count: int, scale: float, seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) * scale
    values = scores_of(logits, labels, cuts=(min(cut, count),))
    references = {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "calibration_error": MulticlassCalibrationError(classes, n_bins=15),
        "macro_f1": MulticlassF1Score(classes, average="macro"),
    }
    if classes > 5 and 0 < scale < 200:  # of equal ones, any five are the highest
        references["top5_accuracy"] = MulticlassAccuracy(classes, average="micro", top_k=5)
    shares = logits.softmax(1)  # logits between 0 and 1 would be taken for shares
    for name, reference in references.items():
        assert values[name] == pytest.approx(float(reference(shares, labels)), abs=1e-6), name
    rows = class_rows(confusion_of(logits, labels), [""] * classes)
    recalls = [row.recall for row in rows if row.recall is not None]
    assert values["balanced_accuracy"] == pytest.approx(sum(recalls) / len(recalls))


def confusion_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    pairs = labels * logits.shape[1] + logits.argmax(1)
    return torch.bincount(pairs, minlength=logits.shape[1] ** 2).view(logits.shape[1], -1)


def test_a_rare_class_counts_in_the_balanced_scores_as_a_frequent_one() -> None:
    """Nine of ten are of the first class, and all are predicted as it."""
    values = scores_of(torch.tensor([[5.0, 0.0, 0.0]] * 10), torch.tensor([0] * 9 + [1]))
    assert values["accuracy"] == pytest.approx(0.9)
    assert values["balanced_accuracy"] == pytest.approx(0.5)  # of the two classes that occur
    assert values["macro_f1"] == pytest.approx((18 / 19 + 0) / 2)
    confidence = float(torch.tensor([5.0, 0, 0]).softmax(0)[0])
    assert values["calibration_error"] == pytest.approx(confidence - 0.9)


def test_logits_that_are_no_numbers_are_no_error() -> None:
    values = scores_of(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.int64))
    assert values["accuracy"] == 1.0  # argmax takes the first
    assert values["loss"] != values["loss"]

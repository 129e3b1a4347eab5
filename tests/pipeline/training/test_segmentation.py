from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datasets.loading.batch import Batch
from pipeline.task_config import SegmentationConfig
from pipeline.training.segmentation import SegmentationTask

CLASSES = ("ocean", "land", "ice", "cloud")
MASK = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 1]]], dtype=torch.uint8)


def batch_of(mask: torch.Tensor) -> Batch:
    count, height, width = mask.shape
    images = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    return Batch(images, torch.full((count,), -1), torch.arange(count), mask, ())


def measured(predicted: list[list[int]], ignore_index: int = 255) -> dict[str, float]:
    task = SegmentationTask(SegmentationConfig(ignore_index=ignore_index), CLASSES)
    metrics = task.metrics()
    logits = 10 * F.one_hot(torch.tensor([predicted]), len(CLASSES)).permute(0, 3, 1, 2).float()
    task.update(metrics, logits, batch_of(torch.where(MASK == 255, ignore_index, MASK)))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_a_class_that_nowhere_occurs_is_left_out_of_miou() -> None:
    # Ice and cloud are in no truth; cloud is predicted where the truth is to be ignored.
    result = measured([[0, 0, 1, 1], [0, 3, 1, 0]])
    assert (result["iou_ocean"], result["iou_land"]) == (3 / 4, 3 / 4)
    assert result["miou"] == 3 / 4
    assert result["pixel_accuracy"] == pytest.approx(6 / 7)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    result = measured([[0, 2, 1, 1], [0, 3, 1, 0]])
    assert result["iou_ocean"] == 2 / 4
    assert result["miou"] == pytest.approx((2 / 4 + 3 / 4 + 0) / 3)


def test_a_class_that_is_ignored_is_not_in_the_mean() -> None:
    """Masks may have 0 for "other", which is then predicted somewhere and true nowhere."""
    result = measured([[1, 0, 1, 1], [0, 3, 1, 1]], ignore_index=0)
    assert result["iou_land"] == result["miou"] == 1
    assert result["pixel_accuracy"] == 1

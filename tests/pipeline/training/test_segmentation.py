from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datasets.loading.batch import Batch
from datasets.transforms.formats import IGNORED
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


def test_a_class_that_is_left_out_is_as_if_its_pixels_were_ignored() -> None:
    """Beside pixels that are of no class, which are 255 whatever the config says: augmentation moves them in."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(len(CLASSES), (3, 8, 8), generator=generator, dtype=torch.uint8)
    masks[0, :3] = IGNORED
    logits = torch.randn(3, len(CLASSES), 8, 8, generator=generator)
    batches = batch_of(masks), batch_of(masks.masked_fill(masks == 2, IGNORED))
    tasks = [SegmentationTask(SegmentationConfig(ignore_index=index), CLASSES) for index in (2, IGNORED)]
    values: list[dict[str, torch.Tensor]] = []
    for task, batch in zip(tasks, batches, strict=True):
        metrics = task.metrics(by_class=True)
        task.update(metrics, logits, batch)
        values.append(metrics.compute())
    assert torch.equal(values[0]["by_class"], values[1]["by_class"])
    assert values[0]["loss"] == values[1]["loss"] > 0
    targets, others = (task.targets(one, torch.device("cpu")) for task, one in zip(tasks, batches, strict=True))
    assert torch.equal(targets, others)
    assert not targets.sum(1)[(masks == 2) | (masks == IGNORED)].any()
    assert torch.equal(targets.argmax(1)[targets.sum(1) > 0], masks[targets.sum(1) > 0].long())
    row = tasks[0].class_rows(values[0]["by_class"])[2]
    assert (row.name, row.count, row.recall, row.precision, row.f1, row.iou) == (CLASSES[2], 0, None, None, None, None)
    pictures = [task.picture(one, logits) for task, one in zip(tasks, batches, strict=True)]
    assert pictures[0] == pictures[1]

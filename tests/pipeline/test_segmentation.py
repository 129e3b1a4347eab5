from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datasets.batch import Batch
from pipeline.config import SegmentationConfig
from pipeline.task import SegmentationTask

CLASSES = ("ocean", "land", "ice", "cloud")
MASK = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 1]]], dtype=torch.uint8)


def batch_of(mask: torch.Tensor) -> Batch:
    count, height, width = mask.shape
    images = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    return Batch(images, torch.full((count,), -1), torch.arange(count), mask, ())


def measured(predicted: list[list[int]]) -> dict[str, float]:
    task = SegmentationTask(SegmentationConfig(), CLASSES)
    metrics = task.metrics()
    logits = 10 * F.one_hot(torch.tensor([predicted]), len(CLASSES)).permute(0, 3, 1, 2).float()
    task.update(metrics, logits, batch_of(MASK))
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


def test_ignored_pixels_give_no_gradient() -> None:
    task = SegmentationTask(SegmentationConfig(), CLASSES)
    logits = torch.randn(1, 4, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    task.loss(logits, task.targets(batch_of(MASK), torch.device("cpu")))["loss"].backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, 1, 1].any()
    assert logits.grad[0, :, 1, 2].any()


def test_the_picture_shows_every_row_and_the_whole_legend() -> None:
    task = SegmentationTask(SegmentationConfig(), CLASSES)
    mask = MASK.repeat(20, 16, 8)
    png = task.picture(batch_of(mask), torch.randn(20, 4, 32, 32, generator=torch.Generator().manual_seed(0)))
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
    from pipeline.pictures import palette

    assert {tuple(colour) for colour in palette(4)[:4].tolist()} <= colours

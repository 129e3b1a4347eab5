"""The Lovász-Softmax loss, against its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.task_config import SegmentationConfig
from pipeline.training.lovasz import lovasz_softmax
from pipeline.training.segmentation import SegmentationTask
from tests.support.mixing import mixup


def jaccard_loss(truth: list[bool], wrong: set[int]) -> float:
    """1 - IoU of a class that is predicted rightly but for the pixels in `wrong`: equation 6 of the paper."""
    there = {pixel for pixel, is_there in enumerate(truth) if is_there}
    return len(wrong) / len(there | wrong) if there | wrong else 0.0


def reference(probabilities: list[list[float]], labels: list[int]) -> float:
    """The loss of one image, pixel by pixel; `labels` are classes, or -1 for a pixel that is ignored."""
    known = [pixel for pixel, label in enumerate(labels) if label >= 0]
    losses = []
    for index in range(len(probabilities)):
        truth = [labels[pixel] == index for pixel in known]
        if any(truth):
            errors = [
                abs(float(is_there) - probabilities[index][pixel]) for pixel, is_there in zip(known, truth, strict=True)
            ]
            loss, wrong = 0.0, set[int]()
            for place in sorted(range(len(known)), key=lambda place: -errors[place]):
                before = jaccard_loss(truth, wrong)
                wrong.add(place)
                loss += errors[place] * (jaccard_loss(truth, wrong) - before)
            losses.append(loss)
    return sum(losses) / len(losses) if losses else 0.0


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Targets [B, K, 1, pixels] of labels [B, pixels]; zero where a label is -1."""
    known = labels >= 0
    return (F.one_hot(labels.clamp(min=0), classes) * known[..., None]).float().permute(0, 2, 1)[:, :, None]


@given(data=st.data(), classes=st.integers(1, 4), pixels=st.integers(1, 9), images=st.integers(1, 3))
@settings(max_examples=120, deadline=None)
def test_the_loss_is_its_definition(data: st.DataObject, classes: int, pixels: int, images: int) -> None:
    labels = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.integers(-1, classes - 1), min_size=pixels, max_size=pixels),
                min_size=images,
                max_size=images,
            )
        )
    )
    seed = data.draw(st.integers(0, 1000))
    logits = torch.randn(images, classes, 1, pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    probabilities = logits.softmax(1)
    expected = [reference(probabilities[image, :, 0].tolist(), labels[image].tolist()) for image in range(images)]
    loss = lovasz_softmax(probabilities, one_hot(labels, classes).double())
    assert loss.item() == pytest.approx(sum(expected) / images, abs=1e-9)


def test_of_hard_predictions_it_is_one_minus_the_iou() -> None:
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]])
    for guess in itertools.product(range(3), repeat=6):
        guessed = torch.tensor([guess])
        ious = [
            float(((labels == k) & (guessed == k)).sum() / ((labels == k) | (guessed == k)).sum()) for k in range(3)
        ]
        loss = lovasz_softmax(one_hot(guessed, 3), one_hot(labels, 3))
        assert loss.item() == pytest.approx(1 - sum(ious) / 3, abs=1e-6)


def test_ignored_pixels_and_images_have_no_gradient() -> None:
    labels = torch.tensor([[-1, -1, 0, 1], [-1, -1, -1, -1]])
    logits = torch.randn(2, 2, 1, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    lovasz_softmax(logits.softmax(1), one_hot(labels, 2)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[1].any()
    assert not logits.grad[0, ..., :2].any()
    assert logits.grad[0, ..., 2:].all()


def test_a_blended_pixel_is_of_the_image_itself_and_the_term_is_in_the_loss() -> None:
    masks = torch.randint(3, (4, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    masks[1, :4] = 255
    task = SegmentationTask(SegmentationConfig(lovasz_weight=0.5), ("a", "b", "c"))
    batch = Batch(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.full((4,), -1), torch.arange(4), masks)
    plain, logits = task.targets(batch, torch.device("cpu")), torch.randn(4, 3, 8, 8)
    options = {"alpha": 1.0, "seed": 3, "stream_index": torch.arange(4), "num_lanes_of_rank": 1}
    _, targets = mixup(batch.images.float(), plain, **options)  # type: ignore[arg-type]
    probabilities = logits.softmax(1)
    assert torch.equal(lovasz_softmax(probabilities, targets), lovasz_softmax(probabilities, plain))
    terms = task.loss(logits, targets)
    assert terms["loss"].item() == pytest.approx(
        float(terms["cross_entropy"] + terms["dice"] + 0.5 * terms["lovasz"]), rel=1e-6
    )
    without = SegmentationTask(SegmentationConfig(), ("a", "b", "c")).loss(logits, targets)
    assert [*without] == ["loss", "cross_entropy", "dice"]

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import sigmoid_focal_loss

from datasets.loading.batch import Batch
from pipeline.task_config import ClassificationConfig, SegmentationConfig
from pipeline.training.classification import ClassificationTask, focal_loss
from pipeline.training.segmentation import SegmentationTask
from pipeline.training.task import build_task
from tests.support.mixing import mixup
from tests.support.ranks import on_ranks

CLASSES = ("sea", "land", "ice")


def masks_of(count: int, *, ignored: tuple[int, ...] = ()) -> Tensor:
    """Masks of 8x8 pixels; image i has `ignored[i]` rows that are to be ignored."""
    masks = torch.randint(3, (count, 8, 8), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    for image, rows in enumerate(ignored):
        masks[image, :rows] = 255
    return masks


def batch_of(masks: Tensor) -> Batch:
    count = len(masks)
    images = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(images, torch.full((count,), -1), torch.arange(count), masks)


def task_of(**fields: float) -> SegmentationTask:
    return SegmentationTask(SegmentationConfig(**fields), CLASSES)  # type: ignore[arg-type]


def logits_of(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.mark.parametrize("ignored", [(), (3, 0, 8)])
def test_without_dice_the_loss_is_pytorchs_cross_entropy(ignored: tuple[int, ...]) -> None:
    task, batch, logits = task_of(dice_weight=0), batch_of(masks_of(3, ignored=ignored)), logits_of(3)
    assert batch.masks is not None
    terms = task.loss(logits, task.targets(batch, torch.device("cpu")))
    expected = F.cross_entropy(logits, batch.masks.long(), ignore_index=255)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms["loss"], logits, retain_graph=True)
    (other,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradient, other, atol=1e-8)


def test_dice_by_hand() -> None:
    # Two pixels of class 0 and two of class 1; every probability is 1/2; class 2 isn't there and doesn't count.
    task = task_of(dice_weight=2)
    masks = torch.tensor([[[0, 0], [1, 1]]], dtype=torch.uint8)
    targets = task.targets(batch_of(masks), torch.device("cpu"))
    logits = torch.tensor([0.0, 0.0, -100.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    terms = task.loss(logits, targets)
    assert terms["dice"].item() == pytest.approx(1 - 2 * 1 / (2 + 2))
    assert terms["loss"].item() == pytest.approx(terms["cross_entropy"].item() + 2 * 0.5)
    perfect = task.loss(targets * 200 - 100, targets)
    assert perfect["loss"].item() == pytest.approx(0, abs=1e-6)


def test_ignored_pixels_have_no_gradient_and_all_ignored_is_no_loss() -> None:
    task, logits = task_of(), logits_of(2)
    targets = task.targets(batch_of(masks_of(2, ignored=(8, 3))), torch.device("cpu"))
    task.loss(logits, targets)["loss"].backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert not logits.grad[1, :, :3].any()
    assert logits.grad[1, :, 3:].all()
    nothing = task.targets(batch_of(masks_of(1, ignored=(8,))), torch.device("cpu"))
    assert task.loss(logits[:1], nothing)["loss"].item() == 0


def test_mixup_keeps_each_pixels_weight() -> None:
    task, batch = task_of(), batch_of(masks_of(8, ignored=(8, 0, 0, 0, 0, 0, 0, 0)))
    images, targets = mixup(
        batch.images.float(),
        task.targets(batch, torch.device("cpu")),
        alpha=1.0,
        seed=0,
        stream_index=batch.stream_index,
        num_lanes_of_rank=1,
    )
    assert images.shape == (8, 3, 8, 8)
    weights = targets.sum(1)
    assert weights.max() <= 1 + 1e-6
    assert ((targets > 0).sum(1) == 2).any()  # pixels of two classes
    assert ((weights > 0.01) & (weights < 0.99)).any()  # blended with a pixel that is ignored
    assert torch.isfinite(task.loss(logits_of(8), targets)["loss"])


def test_metrics_are_exact_however_the_images_are_cut_into_batches() -> None:
    task, masks, logits = task_of(), masks_of(5, ignored=(2, 0, 8, 0, 1)), logits_of(5).detach()
    whole, parts = task.metrics(), task.metrics()
    task.update(whole, logits, batch_of(masks))
    for part in (slice(0, 1), slice(1, 5)):
        task.update(parts, logits[part], batch_of(masks[part]))
    values = {name: float(value) for name, value in parts.compute().items()}
    assert values == pytest.approx({name: float(value) for name, value in whole.compute().items()})
    predicted, seen = logits.argmax(1), masks != 255
    each = []
    for index, name in enumerate(CLASSES):
        truth, guess = (masks == index) & seen, (predicted == index) & seen
        each.append(float((truth & guess).sum() / (truth | guess).sum()))
        assert values[f"iou_{name}"] == pytest.approx(each[-1])
    assert values["miou"] == pytest.approx(sum(each) / 3)
    assert values["pixel_accuracy"] == pytest.approx(float((predicted == masks)[seen].float().mean()))
    assert values["loss"] == pytest.approx(float(F.cross_entropy(logits, masks.long(), ignore_index=255)), rel=1e-6)


def test_pictures_are_images_of_what_is_shown() -> None:
    masks = masks_of(2)
    perfect = F.one_hot(masks.long(), 3).permute(0, 3, 1, 2).float()
    sheet = Image.open(io.BytesIO(task_of().picture(batch_of(masks), perfect)))
    truth, prediction = ((80, 8 + 4, 88, 16 + 4), (80, 2 * (8 + 4), 88, 2 * (8 + 4) + 8))
    assert sheet.crop(truth).tobytes() == sheet.crop(prediction).tobytes()
    labelled = ClassificationTask(ClassificationConfig(), CLASSES)
    batch = Batch(batch_of(masks).images, torch.tensor([0, 2]), torch.arange(2))
    right, wrong = (labelled.picture(batch, F.one_hot(torch.tensor(guess), 3).float()) for guess in ([0, 2], [0, 1]))
    assert right != wrong
    assert Image.open(io.BytesIO(right)).height > 8


def test_focal_loss_is_torchvisions_for_two_classes() -> None:
    # Two classes' softmax is the sigmoid of the logits' difference, for which torchvision has the loss.
    logits = torch.randn(16, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    labels = torch.arange(16) % 2
    task = ClassificationTask(ClassificationConfig(label_smoothing=0, focal_gamma=2.5), CLASSES[:2])
    loss = task.loss(logits, F.one_hot(labels, 2).float())["loss"]
    expected = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), alpha=-1, gamma=2.5, reduction="mean")
    assert torch.allclose(loss, expected, rtol=1e-5)
    gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (loss, expected)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_focal_loss_without_focus_is_cross_entropy_and_blended_targets_blend_the_loss() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    one, two = (F.one_hot(torch.arange(6) * step % 3, 3).float() for step in (1, 2))
    assert torch.allclose(focal_loss(logits, one, 0.0), F.cross_entropy(logits, one))
    blend = focal_loss(logits, 0.3 * one + 0.7 * two, 2.0)
    assert torch.allclose(blend, 0.3 * focal_loss(logits, one, 2.0) + 0.7 * focal_loss(logits, two, 2.0))
    certain = (F.one_hot(torch.tensor([0]), 3).float() * 200.0).requires_grad_()
    (gradient,) = torch.autograd.grad(focal_loss(certain, F.one_hot(torch.tensor([0]), 3), 0.5), certain)
    assert torch.equal(gradient, torch.zeros(1, 3))  # no NaN where a probability is 1


def test_tversky_by_counted_mistakes_and_equal_halves_are_dice() -> None:
    masks, guessed = masks_of(4), masks_of(5)[:4]
    targets = task_of().targets(batch_of(masks), torch.device("cpu"))
    logits = F.one_hot(guessed.long(), 3).permute(0, 3, 1, 2) * 200.0
    task = task_of(false_positive_weight=0.3, false_negative_weight=0.7)
    indices = []
    for index in range(3):
        truth, guess = masks == index, guessed == index
        right, extra, missed = (int(part.sum()) for part in (truth & guess, ~truth & guess, truth & ~guess))
        indices.append(right / (right + 0.3 * extra + 0.7 * missed))
    assert task.loss(logits, targets)["dice"].item() == pytest.approx(1 - sum(indices) / 3)
    nearly = task_of(false_positive_weight=0.5 + 1e-9, false_negative_weight=0.5)
    soft = logits_of(4)
    assert torch.allclose(nearly.loss(soft, targets)["loss"], task_of().loss(soft, targets)["loss"])


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (ClassificationConfig, {"focal_gamma": -1.0}),
        (SegmentationConfig, {"false_positive_weight": 0.0}),
        (SegmentationConfig, {"false_negative_weight": -0.5}),
        (SegmentationConfig, {"lovasz_weight": -1.0}),
        (SegmentationConfig, {"dice_weight": float("inf")}),
    ],
)
def test_weights_that_make_no_loss_are_refused(config: type, fields: dict[str, float]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=rf"task.{name} is .*: it must be"):
        config(**fields)


# Several workers ------------------------------------------------------------------------------------------------------

IGNORED = (7, 0, 8, 1)


class _Net(nn.Module):
    """Without batch norm, whose statistics are each worker's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def _gradients(net: nn.Module, part: slice, fields: dict[str, float]) -> tuple[dict[str, Tensor], float]:
    """The loss of some images of the batch, with the gradients that training would take."""
    task, batch = task_of(**fields), batch_of(masks_of(4, ignored=IGNORED))
    targets = task.targets(batch, torch.device("cpu"))
    terms = task.loss(net(batch.images[part].float() / 255), targets[part])
    terms["loss"].backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in net.named_parameters() if p.grad is not None}
    return gradients, terms["loss"].item()


def _of_a_worker(each: list[dict[str, float]]) -> list[tuple[dict[str, Tensor], float]]:
    part = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    return [_gradients(DistributedDataParallel(_Net()), part, fields) for fields in each]


def test_two_workers_with_unequal_pixels_learn_what_one_would(tmp_path: Path) -> None:
    each = [{"lovasz_weight": 1.0}, {"false_positive_weight": 0.8}]  # and Dice; Tversky
    for fields, *found in zip(each, *on_ranks(2, tmp_path, _of_a_worker, each), strict=True):
        expected, loss = _gradients(_Net(), slice(0, 4), fields)
        for gradients, _ in found:
            assert gradients.keys() == expected.keys()
            for name, gradient in gradients.items():
                assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-7), name
        assert sum(seen for _, seen in found) / 2 == pytest.approx(loss)


@pytest.mark.parametrize("config", [ClassificationConfig(), SegmentationConfig()])
@pytest.mark.parametrize("classes", [CLASSES, tuple("abcdef")])
def test_the_names_that_the_driver_checks_are_those_of_the_metrics(
    config: ClassificationConfig | SegmentationConfig, classes: tuple[str, ...]
) -> None:
    task, batch = build_task(config, classes), batch_of(masks_of(2))
    metrics = task.metrics()
    logits = torch.zeros(2, len(classes), *((8, 8) if isinstance(config, SegmentationConfig) else ()))
    task.update(metrics, logits, replace(batch, labels=torch.tensor([0, 1])))
    assert sorted(metrics.compute()) == sorted(config.metric_names(classes))

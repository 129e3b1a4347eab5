"""Weights of classes in each task's loss, and runs with weights and with sampling by classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datasets.loading.batch import Batch
from pipeline.config import TrainConfig
from pipeline.run.preflight import check_run
from pipeline.task_config import ClassificationConfig, MultilabelConfig, SegmentationConfig
from pipeline.training.classification import ClassificationTask
from pipeline.training.multilabel import MultilabelTask
from pipeline.training.segmentation import SegmentationTask
from tests.support.configs import MakeConfig
from tests.support.mixing import mixup
from tests.support.recorders import Recorder
from tests.support.shards import write_rare_shards
from tests.support.trainers import assert_same_weights, make_trainer

CPU = torch.device("cpu")
CLASSES = ("usual", "rare", "rarest")
WEIGHTS = (0.5, 2.0, 8.0)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(labels: torch.Tensor, masks: torch.Tensor | None = None) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), labels, torch.arange(len(labels)), masks)


def test_an_images_loss_has_the_weight_of_its_class_and_smoothing_none_of_its_own() -> None:
    labels, logits = torch.arange(12) % 3, some(12, 3)
    task = ClassificationTask(ClassificationConfig(class_weights=WEIGHTS, label_smoothing=0.1), CLASSES)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1) * torch.tensor(WEIGHTS)[labels]
    loss = task.loss(logits, task.targets(labelled(labels), CPU))["loss"]
    assert loss.item() == pytest.approx(each.mean().item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_blend_of_two_images_has_the_blend_of_their_weighted_losses(gamma: float) -> None:
    config = ClassificationConfig(class_weights=WEIGHTS, focal_gamma=gamma)
    task, labels, logits = ClassificationTask(config, CLASSES), torch.tensor([0, 1, 2, 0]), some(4, 3)
    plain, images = task.targets(labelled(labels), CPU), torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    options = {"alpha": 1.0, "seed": 3, "stream_index": torch.arange(4), "num_lanes_of_rank": 1}
    mixed, targets = mixup(images, plain, **options)  # type: ignore[arg-type]
    for row in range(4):
        share = (float(mixed[row].mean()) - (3 - row)) / (row - (3 - row))  # images are their numbers
        alone, other = (task.loss(logits[row : row + 1], plain[one : one + 1])["loss"] for one in (row, 3 - row))
        blend = task.loss(logits[row : row + 1], targets[row : row + 1])["loss"]
        assert blend.item() == pytest.approx((share * alone + (1 - share) * other).item(), rel=1e-5)


def test_a_pixels_cross_entropy_has_the_weight_of_its_class_and_dice_none() -> None:
    masks = (torch.arange(2 * 64) % 3).view(2, 8, 8).to(torch.uint8)
    masks[0, :3] = 255
    logits, batch = some(2, 3, 8, 8), labelled(torch.full((2,), -1), masks)
    task, plain = (
        SegmentationTask(SegmentationConfig(class_weights=weights), CLASSES) for weights in (WEIGHTS, "none")
    )
    terms, others = (one.loss(logits, one.targets(batch, CPU)) for one in (task, plain))
    each = (
        F.cross_entropy(logits, masks.long(), weight=torch.tensor(WEIGHTS), ignore_index=255, reduction="sum")
        / (masks != 255).sum()
    )
    assert terms["cross_entropy"].item() == pytest.approx(each.item(), rel=1e-5)
    assert terms["dice"] == others["dice"]


def test_positives_of_several_labels_have_the_weights_of_their_classes() -> None:
    labels, logits, weights = (some(20, 3, seed=1) > 0).long(), some(20, 3), torch.tensor(WEIGHTS)
    task = MultilabelTask(MultilabelConfig(positive_weights=WEIGHTS), CLASSES)
    loss = task.loss(logits, task.targets(labelled(labels), CPU))["loss"]
    assert loss == F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights)
    config = MultilabelConfig(positive_weights=WEIGHTS, loss="asymmetric", gamma_neg=0, gamma_pos=0, clip=0)
    asymmetric = MultilabelTask(config, CLASSES).loss(logits, labels.float())["loss"]
    assert asymmetric.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["classification", "segmentation", "multilabel"])
def test_the_loss_of_evaluations_has_no_weights(kind: str) -> None:
    masks, labels = (torch.arange(2 * 64) % 3).view(2, 8, 8).to(torch.uint8), torch.tensor([0, 2])
    task, plain, logits, batch = {
        "classification": (
            ClassificationTask(ClassificationConfig(class_weights=WEIGHTS), CLASSES),
            ClassificationTask(ClassificationConfig(), CLASSES),
            some(2, 3),
            labelled(labels),
        ),
        "segmentation": (
            SegmentationTask(SegmentationConfig(class_weights=WEIGHTS), CLASSES),
            SegmentationTask(SegmentationConfig(), CLASSES),
            some(2, 3, 8, 8),
            labelled(labels, masks),
        ),
        "multilabel": (
            MultilabelTask(MultilabelConfig(positive_weights=WEIGHTS), CLASSES),
            MultilabelTask(MultilabelConfig(), CLASSES),
            some(2, 3),
            labelled(F.one_hot(labels, 3)),
        ),
    }[kind]
    values = []
    for one in (task, plain):
        metrics = one.loss_metric()
        one.update(metrics, logits, batch)
        values.append(metrics.compute()["loss"])
    assert values[0] == values[1]


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (1.0, float("nan")), (float("inf"), 1.0)])
def test_what_is_no_weight_is_refused(weights: tuple[float, ...]) -> None:
    for config in (ClassificationConfig, SegmentationConfig):
        with pytest.raises(ValueError, match=r"task.class_weights is .*: it must be none, auto, or for each class"):
            config(class_weights=weights)
    with pytest.raises(ValueError, match=r"task.positive_weights is .*: it must be none, auto, or for each class"):
        MultilabelConfig(positive_weights=weights)


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rare")
    write_rare_shards(folder / "train", [50, 30])
    write_rare_shards(folder / "val", [40])
    return folder


def balanced(make_config: MakeConfig, rare: Path) -> TrainConfig:
    config = make_config(task=ClassificationConfig(class_weights="auto"))
    data = replace(
        config.data,
        train=str(rare / "train"),
        val=str(rare / "val"),
        sampling="sqrt",
        flip_order="alternating",  # follows from how often a sample was used before
        num_lanes=6,
    )
    return check_run(replace(config, data=data)).config


@pytest.mark.parametrize("index", [0, 2])
def test_a_run_with_weights_and_sampling_resumes_bit_for_bit_amid_an_epoch(
    make_config: MakeConfig, rare: Path, index: int
) -> None:
    config = balanced(make_config, rare)
    whole, resumed = Recorder(), Recorder()
    make_trainer(config, whole).run()
    middle = whole.snapshots[index]
    assert middle.state.cursor % 78  # of 80 samples in 6 lanes
    trainer = make_trainer(config, resumed)
    for parameter in trainer.learner.model.parameters():
        parameter.data.zero_()
    trainer.restore(middle)
    trainer.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])
    losses = [(c, row["train/loss"]) for c, row in whole.rows if "train/loss" in row and c > middle.state.cursor]
    assert losses == [(c, row["train/loss"]) for c, row in resumed.rows if "train/loss" in row]


def test_auto_weights_are_numbers_in_the_runs_config_and_follow_what_an_epoch_takes(
    make_config: MakeConfig, rare: Path
) -> None:
    config = balanced(make_config, rare)
    assert isinstance(config.task, ClassificationConfig)
    # 70, 8 and 2 images; by their square roots an epoch of 80 has 53, 18 and 9.
    assert config.task.class_weights == pytest.approx([80 / (3 * n) for n in (53, 18, 9)], rel=1e-3)
    plain = replace(config, data=replace(config.data, sampling="uniform"))
    task = check_run(replace(plain, task=ClassificationConfig(class_weights="auto"))).config.task
    assert isinstance(task, ClassificationConfig)
    assert task.class_weights == pytest.approx([80 / (3 * n) for n in (70, 8, 2)], rel=1e-3)
    assert check_run(plain).config.task == config.task  # numbers stay as they are
    with pytest.raises(ValueError, match=r"task.class_weights has 2 numbers for 3 classes.*: usual, rare, rarest"):
        check_run(replace(plain, task=ClassificationConfig(class_weights=(1.0, 2.0))))

"""The multi-label task: its losses, its metrics, its thresholds, and a run of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.config import TrainConfig
from pipeline.schedule.adaptive import PLAIN_TRAINING_LOSS
from pipeline.task_config import MultilabelConfig
from pipeline.training.label_scores import class_curve
from pipeline.training.multilabel import MultilabelTask, asymmetric_loss
from tests.support.configs import MakeConfig
from tests.support.mixing import cutmix, mixup
from tests.support.ranks import on_ranks
from tests.support.recorders import Recorder
from tests.support.shards import write_multilabel_shards
from tests.support.trainers import assert_same_weights, make_trainer

CLASSES = ("stripes", "spots", "waves")


def batch_of(labels: Tensor) -> Batch:
    images = torch.randint(256, (len(labels), 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(images, labels.to(torch.uint8), torch.arange(len(labels)))


def values_of(task: MultilabelTask, logits: Tensor, labels: Tensor, parts: int = 1) -> dict[str, float]:
    metrics = task.metrics()
    for rows in torch.arange(len(labels)).tensor_split(parts):
        if len(rows):
            task.update(metrics, logits[rows], batch_of(labels[rows]))
    return {name: float(value) for name, value in metrics.compute().items()}


def average_precision(scores: list[float], truth: list[bool]) -> float:
    """As scikit-learn defines it, by brute force: precision at each distinct score, weighed by what it adds."""
    total, before, found = sum(truth), 0.0, 0.0
    for limit in sorted(set(scores), reverse=True):
        taken = [label for score, label in zip(scores, truth, strict=True) if score >= limit]
        recall = sum(taken) / total
        found += (recall - before) * sum(taken) / len(taken)
        before = recall
    return found


def f1(chosen: list[bool], truth: list[bool]) -> float:
    right = sum(a and b for a, b in zip(chosen, truth, strict=True))
    return 2 * right / (sum(chosen) + sum(truth))


# Few distinct values, so that there are ties.
SAMPLES = st.lists(st.tuples(st.sampled_from([-9.5, -1.0, -0.25, 0.0, 0.5, 2.0, 30.0]), st.booleans()), min_size=1)


@settings(max_examples=200, deadline=None)
@given(samples=SAMPLES)
def test_average_precision_and_threshold_are_those_of_brute_force(samples: list[tuple[float, bool]]) -> None:
    logits, truth = torch.tensor([score for score, _ in samples]), [label for _, label in samples]
    precision, threshold = class_curve(logits, torch.tensor(truth)).tolist()
    if not any(truth):
        assert math.isnan(precision)
        assert threshold == 0.5
        return
    assert precision == pytest.approx(average_precision(logits.tolist(), truth))
    possible = [f1((logits >= limit).tolist(), truth) for limit in logits]
    assert f1((logits.double().sigmoid() >= threshold).tolist(), truth) == pytest.approx(max(possible))


def some(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 3, generator=generator).mul(3).round(decimals=1)
    return logits, torch.rand(count, 3, generator=generator) < torch.tensor([0.5, 0.1, 0.3])


def test_scores_are_those_of_brute_force_over_all_samples() -> None:
    logits, labels = some(60)
    labels[:, 1] = False  # a class without images: no part of the mean, and 0.5 for its threshold
    task = MultilabelTask(MultilabelConfig(), CLASSES)
    values = values_of(task, logits, labels)
    assert {*values} == {*task.config.metric_names(CLASSES)}
    scores, truth = logits.double().sigmoid(), labels.tolist()
    columns = [([row[k] for row in logits.tolist()], [row[k] for row in truth]) for k in range(3)]
    expected = [average_precision(*columns[k]) for k in (0, 2)]
    assert values["map"] == pytest.approx(sum(expected) / 2)
    assert values["threshold_spots"] == 0.5
    limits = torch.tensor([values[f"threshold_{name}"] for name in CLASSES])
    for suffix, chosen in (("", scores >= limits), ("_at_half", logits >= 0)):
        each = [f1(chosen[:, k].tolist(), columns[k][1]) for k in range(3)]
        assert values[f"macro_f1{suffix}"] == pytest.approx(sum(each) / 3)
        flat = chosen.flatten().tolist(), labels.flatten().tolist()
        assert values[f"micro_f1{suffix}"] == pytest.approx(f1(*flat))
    assert values["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels.float()).item(), rel=1e-6)
    assert values["macro_f1"] >= values["macro_f1_at_half"]


def test_scores_of_data_without_any_label_are_numbers() -> None:
    values = values_of(MultilabelTask(MultilabelConfig(), CLASSES), -torch.ones(4, 3), torch.zeros(4, 3).bool())
    assert values["map"] == values["micro_f1"] == values["macro_f1"] == 0
    assert all(math.isfinite(value) for value in values.values())


def test_recorded_thresholds_are_used_on_other_data() -> None:
    recorded = {"cursor": 3, "val/threshold_stripes": 0.9, "val/threshold_waves": 0.1}
    task = MultilabelTask(MultilabelConfig(), CLASSES, recorded)
    assert task.thresholds == (0.9, 0.5, 0.1)
    logits, labels = some(40)
    values = values_of(task, logits, labels)
    chosen = logits.double().sigmoid() >= torch.tensor([0.9, 0.5, 0.1])
    assert values["micro_f1"] == pytest.approx(f1(chosen.flatten().tolist(), labels.flatten().tolist()))
    assert values["threshold_stripes"] == 0.9
    rows = task.class_rows(by_class(task, logits, labels))
    assert [row.threshold for row in rows] == [0.9, 0.5, 0.1]
    assert rows[2].f1 == pytest.approx(f1(chosen[:, 2].tolist(), labels[:, 2].tolist()))
    assert rows[2].count == labels[:, 2].sum()


def by_class(task: MultilabelTask, logits: Tensor, labels: Tensor) -> Tensor:
    metrics = task.metrics(by_class=True)
    task.update(metrics, logits, batch_of(labels))
    found: Tensor = metrics.compute()["by_class"]
    return found


def _values_on_ranks() -> list[dict[str, float]]:
    logits, labels = some(11)
    rank = dist.get_rank()
    found = []
    for cut in (4, 11):  # of the second, one rank has no sample at all
        rows = slice(0, cut) if rank == 0 else slice(cut, 11)
        found.append(values_of(MultilabelTask(MultilabelConfig(), CLASSES), logits[rows], labels[rows]))
    return found


def test_scores_are_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    alone = values_of(MultilabelTask(MultilabelConfig(), CLASSES), *some(11), parts=3)
    for values in (values for rank in on_ranks(2, tmp_path, _values_on_ranks) for values in rank):
        assert values == pytest.approx(alone, rel=1e-12)
        assert values["map"] == alone["map"]


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4.0, 0.0, 0.05), (2.0, 1.0, 0.0), (0.5, 0.5, 0.2)])
def test_the_asymmetric_loss_is_the_papers(gamma_neg: float, gamma_pos: float, clip: float) -> None:
    logits, labels = some(30)
    p = logits.double().sigmoid()
    shifted = (p - clip).clamp(min=0)
    each = torch.where(labels, -((1 - p) ** gamma_pos) * p.log(), -(shifted**gamma_neg) * (1 - shifted).log())
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    assert asymmetric_loss(logits, labels.float(), **options).item() == pytest.approx(each.mean().item(), rel=1e-4)
    config = MultilabelConfig(loss="asymmetric", **options)
    assert MultilabelTask(config, CLASSES).loss(logits, labels.float())["loss"].item() == pytest.approx(
        each.mean().item(), rel=1e-4
    )


def test_the_asymmetric_loss_without_its_parts_is_the_cross_entropy() -> None:
    logits, targets = some(30)[0], torch.rand(30, 3, generator=torch.Generator().manual_seed(1))
    loss = asymmetric_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0)
    assert loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradients_of_extreme_logits_are_finite(gamma: float, clip: float) -> None:
    logits = torch.tensor([[-200.0, -30.0, -3.0, 0.0, 3.0, 30.0, 200.0]]).repeat(3, 1).requires_grad_()
    targets = torch.tensor([[0.0], [1.0], [0.3]]).expand(3, 7)
    asymmetric_loss(logits, targets, gamma_neg=gamma, gamma_pos=gamma, clip=clip).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_targets_are_smoothed_each_for_itself_and_not_spread_over_the_classes() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 0, 0]])
    targets = MultilabelTask(MultilabelConfig(label_smoothing=0.1), CLASSES).targets(
        batch_of(labels), torch.device("cpu")
    )
    torch.testing.assert_close(targets, torch.tensor([[0.95, 0.95, 0.05], [0.05, 0.05, 0.05]]))


def test_mixup_and_cutmix_blend_the_labels_of_both_images() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    task = MultilabelTask(MultilabelConfig(), CLASSES)
    plain = task.targets(batch_of(labels), torch.device("cpu"))
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)  # each image is its number
    options = {"alpha": 1.0, "seed": 3, "stream_index": torch.arange(4), "num_lanes_of_rank": 1}
    for mixing in (mixup, cutmix):
        mixed, targets = mixing(images, plain, **options)  # type: ignore[arg-type]
        for row in range(4):
            partner = 3 - row
            # The share of the partner's pixels, or of its brightness, is the share of its labels.
            share = (mixed[row].mean() - row) / (partner - row)
            torch.testing.assert_close(targets[row], plain[row] * (1 - share) + plain[partner] * share)
        assert targets.sum(1).max() > 1  # not a distribution over the classes
        assert torch.isfinite(task.loss(torch.zeros(4, 3), targets)["loss"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gamma_neg": -1.0}, "task.gamma_neg is -1.0: it must be 0"),
        ({"gamma_pos": math.nan}, "task.gamma_pos is nan"),
        ({"clip": 1.0}, "task.clip is 1.0: it must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "task.label_smoothing is -0.1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MultilabelConfig(**fields)  # type: ignore[arg-type]


def test_the_picture_says_what_was_missed_and_what_is_not_there() -> None:
    task, batch = MultilabelTask(MultilabelConfig(), CLASSES), batch_of(torch.tensor([[1, 1, 0], [0, 0, 0]]))
    guesses = [[1, 1, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]]
    right, wrong = (task.picture(batch, torch.tensor(guess) * 8.0 - 4) for guess in guesses)
    assert right != wrong


def config_of(folder: Path, make_config: MakeConfig) -> TrainConfig:
    write_multilabel_shards(folder / "several/train", [48])
    write_multilabel_shards(folder / "several/val", [16])
    config = make_config()
    data = replace(config.data, train=str(folder / "several/train"), val=str(folder / "several/val"))
    stages = tuple(replace(stage, epochs=1, cutmix_alpha=0.5) for stage in config.stages)
    rules = replace(config.checkpoint, best_metric="val/map", every_epochs=0.5)
    task = MultilabelConfig(loss="asymmetric", label_smoothing=0.1)
    loop = replace(config.adaptive, closed_loop=True)
    return replace(config, data=data, stages=stages, task=task, checkpoint=rules, adaptive=loop)


def test_a_resumed_run_ends_with_the_same_weights_and_thresholds(tmp_path: Path, make_config: MakeConfig) -> None:
    config = config_of(tmp_path, make_config)
    whole, resumed = Recorder(), Recorder()
    make_trainer(config, whole).run()
    half = next(snapshot for snapshot in whole.snapshots if 0 < snapshot.state.cursor < 48)
    again = make_trainer(config, resumed)
    again.restore(half)
    again.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])
    assert any(PLAIN_TRAINING_LOSS in row for _, row in whole.rows)  # what the closed loop goes by
    found = [one.snapshots[-1].state.evaluation for one in (whole, resumed)]
    assert found[0] == found[1]
    assert {"val/map", "val/threshold_spots"} <= found[0].keys()

"""The regression task: standardized targets, its losses, its metrics, and a run of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.errors import DataError
from datasets.loading.batch import Batch
from datasets.shards.resolve import load_manifest
from pipeline.config import TrainConfig
from pipeline.run.preflight import check_run
from pipeline.run.target_numbers import with_target_numbers
from pipeline.task_config import RegressionConfig
from pipeline.training.regression import RegressionTask
from tests.support.configs import MakeConfig
from tests.support.mixing import mixup
from tests.support.ranks import on_ranks
from tests.support.recorders import Recorder
from tests.support.shards import write_target_shards
from tests.support.trainers import assert_same_weights, make_trainer

NAMES = ("light", "height")
CONFIG = RegressionConfig(target_mean=(0.05, 2750.0), target_std=(0.03, 1100.0))


def batch_of(values: Tensor) -> Batch:
    return Batch(torch.zeros(len(values), 3, 8, 8, dtype=torch.uint8), values, torch.arange(len(values)))


def some(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs in standard deviations, and targets in their units."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.tensor(CONFIG.target_mean), torch.tensor(CONFIG.target_std)
    return torch.randn(count, 2, generator=generator), torch.randn(count, 2, generator=generator) * std + mean


def values_of(task: RegressionTask, outputs: Tensor, truth: Tensor, parts: int = 1) -> dict[str, float]:
    metrics = task.metrics()
    for rows in torch.arange(len(truth)).tensor_split(parts):
        if len(rows):
            task.update(metrics, outputs[rows], batch_of(truth[rows]))
    return {name: float(value) for name, value in metrics.compute().items()}


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 30), parts=st.integers(1, 4), seed=st.integers(0, 99))
def test_scores_are_those_of_numpy_in_the_targets_units_however_they_are_cut(count: int, parts: int, seed: int) -> None:
    outputs, truth = some(count, seed)
    found = values_of(RegressionTask(CONFIG, NAMES), outputs, truth, parts)
    values = outputs.double().numpy() * np.array(CONFIG.target_std) + np.array(CONFIG.target_mean)
    errors, real = values - truth.double().numpy(), truth.double().numpy()
    for index, name in enumerate(NAMES):
        spread = ((real[:, index] - real[:, index].mean()) ** 2).sum()
        assert found[f"mae_{name}"] == pytest.approx(np.abs(errors[:, index]).mean(), rel=1e-4)
        assert found[f"rmse_{name}"] == pytest.approx(np.sqrt((errors[:, index] ** 2).mean()), rel=1e-4)
        assert found[f"r2_{name}"] == pytest.approx(1 - (errors[:, index] ** 2).sum() / spread, rel=1e-3)
    assert found["mae"] == pytest.approx((found["mae_light"] + found["mae_height"]) / 2)
    assert sorted(found) == sorted(CONFIG.metric_names(NAMES))


@pytest.mark.parametrize(
    ("loss", "function"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("smooth_l1", F.smooth_l1_loss)]
)
def test_losses_are_pytorchs_of_standardized_targets(loss: str, function: object) -> None:
    outputs, truth = some(20)
    task = RegressionTask(replace(CONFIG, loss=loss), NAMES)
    standardized = (truth - torch.tensor(CONFIG.target_mean)) / torch.tensor(CONFIG.target_std)
    expected = function(outputs, standardized)  # type: ignore[operator]
    targets = task.targets(batch_of(truth), torch.device("cpu"))
    assert task.loss(outputs, targets)["loss"].item() == pytest.approx(expected.item())
    assert values_of(task, outputs, truth)["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_in_units_the_same_model_has_the_same_scores() -> None:
    outputs, truth = some(20)
    values = outputs * torch.tensor(CONFIG.target_std) + torch.tensor(CONFIG.target_mean)
    one = values_of(RegressionTask(CONFIG, NAMES), outputs, truth)
    other = values_of(RegressionTask(CONFIG, NAMES, in_units=True), values, truth)
    assert other == pytest.approx(one, rel=1e-4)


def test_a_target_that_is_always_the_same_has_the_r2_of_scikit_learn() -> None:
    config = RegressionConfig(target_mean=(5.0,), target_std=(1.0,))
    found = values_of(RegressionTask(config, ("x",)), torch.ones(4, 1), torch.full((4, 1), 5.0))
    assert (found["r2"], found["mae"]) == (0, 1)
    found = values_of(RegressionTask(config, ("x",)), torch.zeros(4, 1), torch.full((4, 1), 5.0))
    assert (found["r2"], found["mae"]) == (1, 0)


@settings(max_examples=50, deadline=None)
@given(mean=st.floats(-1e12, 1e12), std=st.floats(1, 1e6), away=st.floats(-5, 5))
def test_targets_far_from_0_keep_their_places_in_deviations(mean: float, std: float, away: float) -> None:
    task = RegressionTask(RegressionConfig(target_mean=(mean,), target_std=(std,)), ("seconds",))
    truth = torch.tensor([[mean + away * std]], dtype=torch.float64)
    found = task.targets(batch_of(truth), torch.device("cpu"))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(away, abs=1e-3)
    assert values_of(task, found, truth)["mae"] == pytest.approx(0, abs=1e-3 * std)


def test_mixup_blends_the_numbers_as_the_images() -> None:
    task, truth = RegressionTask(CONFIG, NAMES), some(4)[1]
    plain, images = task.targets(batch_of(truth), torch.device("cpu")), torch.arange(4.0).view(4, 1, 1, 1)
    options = {"alpha": 1.0, "seed": 3, "stream_index": torch.arange(4), "num_lanes_of_rank": 1}
    mixed, targets = mixup(images.expand(4, 3, 8, 8), plain, **options)  # type: ignore[arg-type]
    for row in range(4):
        share = (float(mixed[row].mean()) - (3 - row)) / (row - (3 - row))
        torch.testing.assert_close(targets[row], share * plain[row] + (1 - share) * plain[3 - row])


def _on_rank() -> dict[str, float]:
    outputs, truth = some(9)
    rows = torch.arange(9).tensor_split(2)[torch.distributed.get_rank()]
    task = RegressionTask(CONFIG, NAMES)
    metrics = task.metrics()
    task.update(metrics, outputs[rows], batch_of(truth[rows]))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    for found in on_ranks(2, tmp_path, _on_rank):
        assert found == pytest.approx(values_of(RegressionTask(CONFIG, NAMES), *some(9)), rel=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_mean": (1.0,)}, "give both, or none"),
        ({"target_mean": (1.0,), "target_std": (0.0,)}, r"task.target_std is \(0.0,\): each must be above 0"),
        ({"target_mean": (float("nan"),), "target_std": (1.0,)}, "task.target_mean is"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegressionConfig(**fields)  # type: ignore[arg-type]


# Runs -----------------------------------------------------------------------------------------------------------------


def config_of(folder: Path, make_config: MakeConfig) -> TrainConfig:
    write_target_shards(folder / "numbers/train", [48])
    write_target_shards(folder / "numbers/val", [16])
    config = make_config()
    data = replace(config.data, train=str(folder / "numbers/train"), val=str(folder / "numbers/val"))
    stages = tuple(replace(stage, epochs=1) for stage in config.stages)
    rules = replace(config.checkpoint, best_metric="val/mae", best_is="lowest", every_epochs=0.5)
    return replace(config, data=data, stages=stages, task=RegressionConfig(), checkpoint=rules)


def test_a_resumed_run_ends_with_the_same_weights_and_scores(tmp_path: Path, make_config: MakeConfig) -> None:
    config = check_run(config_of(tmp_path, make_config)).config
    assert isinstance(config.task, RegressionConfig)
    assert config.task.target_mean == pytest.approx((0.05, 2750), rel=0.05)
    whole, resumed = Recorder(), Recorder()
    make_trainer(config, whole).run()
    half = next(snapshot for snapshot in whole.snapshots if 0 < snapshot.state.cursor < 48)
    again = make_trainer(config, resumed)
    again.restore(half)
    again.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])
    found = [one.snapshots[-1].state.evaluation for one in (whole, resumed)]
    assert found[0] == found[1]
    assert {"val/mae", "val/rmse_height"} <= found[0].keys()


def test_what_does_not_go_with_numbers_is_refused_in_one_line(tmp_path: Path, make_config: MakeConfig) -> None:
    config = config_of(tmp_path, make_config)
    last = config.stages[-1]
    with pytest.raises(ValueError, match=r"stage 2: cutmix_alpha is 1, but a part of an image hasn't that part"):
        check_run(replace(config, stages=(config.stages[0], replace(last, cutmix_alpha=1.0))))
    with pytest.raises(ValueError, match="'val/mae', of which the lowest is the best"):
        check_run(replace(config, checkpoint=replace(config.checkpoint, best_is="highest")))
    with pytest.raises(DataError, match=r"data.sampling is balanced: it needs one class .* regression; leave it"):
        check_run(replace(config, data=replace(config.data, sampling="balanced")))
    with pytest.raises(ValueError, match="has 1 numbers for the 2 targets light, height"):
        check_run(replace(config, task=RegressionConfig(target_mean=(1.0,), target_std=(1.0,))))
    manifest = load_manifest(config.data.train)
    with pytest.raises(DataError, match="the target 'height' is always 3"):
        with_target_numbers(RegressionConfig(), replace(manifest, targets=((0.0, 1.0), (3.0, 0.0))))
    with pytest.raises(DataError, match="for a whole folder only"):
        with_target_numbers(RegressionConfig(), replace(manifest, targets=()))

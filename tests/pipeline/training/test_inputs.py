"""Options of what the network is shown: the same batches on any number of ranks, and resumed bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.shards.resolve import load_manifest
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage
from pipeline.task_config import SegmentationConfig
from pipeline.training.inputs import mixed_inputs, stage_batches
from pipeline.training.task import build_task
from tests.support.configs import MakeConfig, small_config
from tests.support.recorders import Recorder
from tests.support.shards import write_mask_shards
from tests.support.trainers import assert_same_weights, make_trainer

OPTIONS = ("low frequencies", "alternating flips", "random sizes", "google", "not square")


def with_option(config: TrainConfig, option: str) -> TrainConfig:
    first, last = config.stages
    stages = {
        "low frequencies": (replace(first, low_frequency_of=48), last),
        "random sizes": (first, replace(last, random_sizes=(32, 40), random_size_share=0.5)),
    }
    data = {
        "alternating flips": replace(config.data, flip_order="alternating"),
        "google": replace(config.data, randaugment_policy="google"),
        "not square": replace(config.data, aspect_ratio=1.4),
    }
    return replace(config, stages=stages.get(option, config.stages), data=data.get(option, config.data))


@pytest.fixture(scope="module")
def all_options(small_data: Path) -> tuple[TrainConfig, Recorder]:
    """A run with all options, and what it recorded."""
    config = small_config(small_data, "unused")
    for option in OPTIONS:
        config = with_option(config, option)
    config = replace(config, stages=tuple(replace(stage, epochs=1.1) for stage in config.stages))
    make_trainer(config, whole := Recorder()).run()
    return config, whole


@pytest.mark.parametrize("index", [1, 3])  # within the first stage, and within the last
def test_resume_is_bit_for_bit_with_all_options(all_options: tuple[TrainConfig, Recorder], index: int) -> None:
    config, whole = all_options
    resumed = Recorder()
    trainer = make_trainer(config, resumed)
    for parameter in trainer.learner.model.parameters():
        parameter.data.zero_()
    trainer.restore(whole.snapshots[index])
    trainer.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])


def inputs(config: TrainConfig, stage: TrainingStage, *, world_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return images and targets of each step of a stage, of all ranks together."""
    task = build_task(config.task, load_manifest(config.data.train).classes)
    ranks = [
        [
            mixed_inputs(batch, stage, config=config, task=task, device=torch.device("cpu"), world_size=world_size)
            for batch in stage_batches(config, stage, start=0, stop=240, rank=rank, world_size=world_size)
        ]
        for rank in range(world_size)
    ]
    return [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]  # type: ignore[misc]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("index", [0, 1])
def test_two_ranks_see_what_one_sees(make_config: MakeConfig, option: str, index: int) -> None:
    config = with_option(make_config(), option)
    alone, together = (inputs(config, config.stages[index], world_size=ranks) for ranks in (1, 2))
    for (images, targets), (theirs, their_targets) in zip(alone, together, strict=True):
        assert torch.equal(images, theirs)
        assert torch.equal(targets, their_targets)
    shapes = {tuple(images.shape[-2:]) for images, _ in alone}
    sizes = {32, 40, 48} if option == "random sizes" and index == 1 else {config.stages[index].image_size}
    assert shapes == {(size, round(1.4 * size) if option == "not square" else size) for size in sizes}


def test_low_frequencies_are_normalized_images_of_the_same_crops(make_config: MakeConfig) -> None:
    config = with_option(make_config(), "low frequencies")
    stage = replace(config.stages[0], mixup_alpha=0.0, randaugment_magnitude=0.0)
    whole = replace(stage, image_size=48, low_frequency_of=0)
    for (small, _), (large, _) in zip(*(inputs(config, one, world_size=1) for one in (stage, whole)), strict=True):
        assert small.shape[-1] == 32
        assert small.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(small.mean(dim=(-2, -1)), large.mean(dim=(-2, -1)), atol=0.02)
        assert small.abs().max() <= 1


@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_masks_follow_low_frequencies(make_config: MakeConfig, tmp_path: Path, ratio: float) -> None:
    base, masked_folder = make_config(), write_mask_shards(tmp_path / "masks", [250])
    config = replace(
        base,
        data=replace(base.data, train=str(masked_folder), val=str(masked_folder), aspect_ratio=ratio),
        task=SegmentationConfig(),
        model=replace(base.model, name="unet_efficientnet_v2_tiny"),
    )
    stage = replace(config.stages[0], low_frequency_of=48, mixup_alpha=0.0, randaugment_magnitude=0.0)
    for images, targets in inputs(config, stage, world_size=1):
        assert images.shape[-2:] == targets.shape[-2:] == (round(32 / ratio), 32)

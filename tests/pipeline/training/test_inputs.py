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
from pipeline.training.inputs import StepInputs, stage_batches
from pipeline.training.task import build_task
from tests.support.alive_bytes import AliveBytes
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
            StepInputs(batch, stage, config, task, torch.device("cpu")).part(slice(None))
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


# A micro-batch at a time ----------------------------------------------------------------------------------------------


def step_inputs(config: TrainConfig, **changes: float) -> StepInputs:
    """Return the inputs of a stage's first step, mixed by both rules."""
    stage = replace(config.stages[1], **({"mixup_alpha": 0.7, "cutmix_alpha": 0.5} | changes))  # type: ignore[arg-type]
    batch = next(iter(stage_batches(config, stage, start=0, stop=240, rank=0, world_size=1)))
    task = build_task(config.task, load_manifest(config.data.train).classes)
    return StepInputs(batch, stage, config, task, torch.device("cpu"))


@pytest.mark.parametrize("option", ["", "low frequencies"])
@pytest.mark.parametrize("micro", [1, 5, 24])
def test_a_micro_batch_has_the_bits_that_it_has_in_the_whole_batch(
    make_config: MakeConfig, option: str, micro: int
) -> None:
    changes = {"low_frequency_of": 64} if option else {}
    inputs = step_inputs(make_config(), **changes)
    parts = [torch.cat(part) for part in zip(*inputs.parts(micro), strict=True)]
    images, targets = inputs.part(slice(None))
    assert torch.equal(parts[0], images)
    assert torch.equal(parts[1], targets)
    assert (targets > 0.01).sum(1).max() > 1  # they are mixed


def test_inputs_are_of_the_type_that_the_network_computes_in(make_config: MakeConfig) -> None:
    base = make_config()
    config = replace(base, trainer=replace(base.trainer, precision="bf16"))
    half, whole = (step_inputs(one).part(slice(4)) for one in (config, base))
    assert (half[0].dtype, half[1].dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(half[0], whole[0].bfloat16())  # rounded once, after all that is computed of them


def test_only_a_micro_batch_of_inputs_is_in_memory_at_a_time(make_config: MakeConfig) -> None:
    """Of a whole batch on one GPU of an ImageNet run they would be gigabytes."""
    inputs = step_inputs(make_config())
    peaks = []
    for micro in (24, 4):
        with AliveBytes() as alive:
            for _ in inputs.parts(micro):
                pass
        peaks.append(alive.peak)
    assert peaks[1] < peaks[0] / 4


def test_a_step_in_parts_holds_less_than_one_of_inputs_that_are_there(make_config: MakeConfig) -> None:
    config = make_config()
    inputs, peaks, terms = step_inputs(config), [], []
    for whole in (True, False):
        learner = make_trainer(config, Recorder()).learner
        learner.regularize(inputs.stage)
        with AliveBytes() as alive:
            options = {"seed": 1, "lr": 1e-3}
            if whole:
                terms.append(learner.step(*inputs.part(slice(None)), micro=4, **options))  # type: ignore[arg-type]
            else:
                terms.append(learner.step_in_parts(inputs.parts(4), len(inputs), **options))  # type: ignore[arg-type]
        peaks.append(alive.peak)
    assert torch.equal(terms[0]["loss"], terms[1]["loss"])
    assert peaks[0] - peaks[1] > 0.7 * inputs.part(slice(None))[0].nbytes


def test_cutmix_fills_boxes_of_images_that_are_no_squares(make_config: MakeConfig) -> None:
    base = make_config()
    inputs = step_inputs(replace(base, data=replace(base.data, aspect_ratio=2.0)), mixup_alpha=0.0)
    drawn = inputs.batch.mixing
    assert inputs.batch.images.shape[-2:] == (48, 96)
    assert drawn is not None
    assert drawn.boxes is not None
    top, bottom, left, right = drawn.boxes.unbind(1)
    assert bottom.max() <= 48 < right.max() <= 96
    # What is the partner's of the pixels is its share of the target.
    assert torch.equal(drawn.own, 1 - ((bottom - top) * (right - left)).float() / (48 * 96))

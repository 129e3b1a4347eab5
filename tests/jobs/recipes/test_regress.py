"""What the generic recipe for numbers shows the network: nothing that could make a number wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import simplejpeg

from datasets.config import DataConfig
from datasets.loading.loader import build_eval_loader
from jobs.recipes.facts import Facts
from jobs.recipes.generic import GENERIC
from pipeline.config import TrainConfig
from pipeline.training.inputs import stage_batches
from tests.support.shards import image_of, write_samples

SHAPES = ((48, 64), (64, 48), (40, 160))
"""Heights and widths; the last one is longer than any usual crop."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    def sample(number: int) -> dict[str, object]:
        height, width = SHAPES[number % len(SHAPES)]
        image = image_of(number % 4, number, height=height, width=width)
        return {"jpg": simplejpeg.encode_jpeg(image), "targets": str(number).encode()}

    folder: Path = tmp_path_factory.mktemp("numbers")
    return str(write_samples(folder, [24], sample, classes=["number"], kind="regression"))


def shows_the_evaluations_images(config: TrainConfig) -> bool:
    """Whether every image of each stage's first batch is, to the last pixel, one that evaluation sees at its size."""
    for stage in config.stages:
        whole = build_eval_loader(config.data, image_size=stage.image_size, batch_size=24, rank=0, world_size=1)
        known = {image.numpy().tobytes() for batch in whole for image in batch.images}
        for batch in stage_batches(config, stage, start=0, stop=stage.batch_size, rank=0, world_size=1):
            if batch.mixing is not None or not known >= {image.numpy().tobytes() for image in batch.images}:
                return False
    return True


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("weights", ["", "lite0"])
def test_it_learns_from_the_images_as_evaluation_sees_them_until_flags_say_more(
    folder: str, weights: str, gpus: int
) -> None:
    config = GENERIC["regress"](Facts(samples=24, short_side=48, gpus=gpus, gpu_memory=16.0 * gpus), weights=weights)
    data: DataConfig = replace(config.data, train=folder, val=folder, loader_workers=0)
    config = replace(config, data=data)
    assert shows_the_evaluations_images(config)
    last = config.stages[-1]
    for more in (
        replace(config, data=replace(data, flip=True)),
        replace(config, data=replace(data, crop_area=(0.4, 1.0))),
        replace(config, stages=(replace(last, randaugment_magnitude=4.0),)),
        replace(config, stages=(replace(last, mixup_alpha=0.1),)),
    ):
        assert not shows_the_evaluations_images(more)

"""Images that are not square: what the loader makes of them, and that their masks stay on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.config import DataConfig
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader, build_plain_loader
from datasets.loading.samples import Request, Samples, View
from datasets.transforms.formats import IGNORED
from datasets.transforms.pixels import Header
from tests.support.batches import train_batches
from tests.support.shards import write_mask_shards

RATIOS = st.floats(0.2, 5)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = str(write_mask_shards(tmp_path_factory.mktemp("masks"), [20]))
    return DataConfig(
        train=folder, val=folder, num_lanes=4, block_size=4, loader_workers=0, crop_area=(0.5, 1.0), eval_crop="whole"
    )


def training(config: DataConfig, size: int, **options: object) -> list[Batch]:
    return list(train_batches(config, image_size=size, **{"seed": 2, "stop": 16, **options}))


def shapes(batches: list[Batch]) -> set[tuple[int, ...]]:
    """Return heights and widths of images, whose masks have the same."""
    for batch in batches:
        assert batch.masks is not None
        assert batch.masks.shape[1:] == batch.images.shape[2:]
    return {tuple(batch.images.shape[2:]) for batch in batches}


def least_aligned(batches: list[Batch]) -> float:
    """Return the smallest share of an image's pixels whose mask is that of their first channel, as it was made."""
    found = []
    for batch in batches:
        assert batch.masks is not None
        for image, mask in zip(batch.images[:, 0].numpy(), batch.masks.numpy(), strict=True):
            seen = mask != IGNORED
            found.append(float((image // 86 == mask)[seen].mean()))
    return min(found)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(24, 64), ratio=RATIOS, flip=st.booleans())
def test_batches_have_the_shape_and_masks_lie_on_their_images(
    config: DataConfig, size: int, ratio: float, flip: bool
) -> None:
    config = replace(config, aspect_ratio=ratio, flip=flip)
    trained = training(config, size)
    evaluated = list(build_eval_loader(config, image_size=size, batch_size=7, rank=0, world_size=1))
    plain = list(build_plain_loader(config, image_size=size, batch_size=8, samples=8, seed=0, rank=0, world_size=1))
    for batches in (trained, evaluated, plain):
        assert shapes(batches) == {config.shape(size)}
        assert least_aligned(batches) > 0.75  # interpolated, the image differs at the borders of classes


@pytest.mark.parametrize("policy", ["torchvision", "google", "geometric"])
@pytest.mark.parametrize("ratio", [0.5, 1.5, 4.0])
def test_randaugment_takes_any_shape(config: DataConfig, policy: str, ratio: float) -> None:
    # Those that move pixels alone: the others change the values that the masks are checked by.
    config = replace(config, aspect_ratio=ratio, randaugment_policy=policy)  # type: ignore[arg-type]
    batches = training(config, 32, magnitude=8)
    assert shapes(batches) == {config.shape(32)}
    if policy == "geometric":
        assert least_aligned(batches) > 0.75


def test_random_sizes_keep_the_ratio(config: DataConfig) -> None:
    config = replace(config, aspect_ratio=1.5)
    batches = training(config, 40, random_sizes=(24, 32), random_size_share=0.7, stop=20 * 8)
    assert shapes(batches) == {(24, 36), (32, 48), (40, 60)}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ratio=RATIOS, seed=st.integers(0, 1000))
def test_training_crops_are_of_the_ratio_within_the_crops_own(config: DataConfig, ratio: float, seed: int) -> None:
    config = replace(config, aspect_ratio=ratio, crop_area=(0.05, 0.1), crop_ratio=(0.8, 1.25))
    samples, view = Samples({}, config), View(image_size=48, seed=seed, training=True)
    ids = np.arange(20)
    for draws in samples._draws(Request(view, ids, ids, ids * 0)):
        _, _, height, width = samples._box(Header(1000, 1000, False), draws, view)
        assert 0.8 * ratio - 0.05 < width / height < 1.25 * ratio + 0.05


def test_a_stage_on_the_evaluations_crop_has_its_shape_too(config: DataConfig) -> None:
    config = replace(config, aspect_ratio=4 / 3, eval_crop="central", flip=False)
    trained, evaluated = (
        training(config, 48, central=True),
        build_eval_loader(config, image_size=48, batch_size=20, rank=0, world_size=1),
    )
    by_number = {
        int(n): image for batch in evaluated for n, image in zip(batch.stream_index, batch.images, strict=True)
    }
    assert shapes(trained) == {(48, 64)}
    pictures = {image.numpy().tobytes() for image in by_number.values()}
    assert all(image.numpy().tobytes() in pictures for batch in trained for image in batch.images)

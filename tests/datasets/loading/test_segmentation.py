"""Images with masks: shards, aligned crops, joint augmentation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.checks import check_data
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.loader import build_eval_loader
from datasets.shards.resolve import load_manifest
from datasets.transforms.augment import rand_augment, random_flip_pair
from datasets.transforms.decode import decode_mask
from datasets.transforms.formats import IGNORED
from datasets.transforms.pixels import read_header
from datasets.transforms.randaugment_policies import MASKED, POLICIES, Amount
from datasets.transforms.randomness import Purpose, sample_generator
from jobs.index import main as index
from tests.support.batches import train_batches
from tests.support.shards import image_of, mask_of, png, write_mask_shards, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask_shards(tmp_path_factory.mktemp("masks"), [20, 17])


@pytest.fixture
def config(folder: Path) -> DataConfig:
    return DataConfig(train=str(folder), val=str(folder), num_lanes=4, block_size=4, loader_workers=0)


def draws(index: int) -> list[float]:
    return sample_generator(9, Purpose.AUGMENT, index).random(5).tolist()


def follows(image: np.ndarray, mask: np.ndarray) -> float:
    """Share of the pixels whose mask is that of their first channel, which the shards' masks are made from."""
    seen = mask != IGNORED
    return float((image[..., 0] // 86 == mask)[seen].mean())


def test_evaluation_keeps_image_and_mask_aligned(config: DataConfig) -> None:
    batches = list(build_eval_loader(config, image_size=64, batch_size=10, rank=0, world_size=1))
    assert [len(batch.images) for batch in batches] == [10, 10, 10, 7]
    for batch in batches:
        assert batch.masks is not None
        assert (batch.masks.shape, batch.masks.dtype) == ((len(batch.images), 64, 64), torch.uint8)
        assert set(batch.labels.tolist()) == {-1}
        for image, mask in zip(batch.images.permute(0, 2, 3, 1).numpy(), batch.masks.numpy(), strict=True):
            assert follows(image, mask) > 0.85  # the image is interpolated, so that it differs at the borders


@pytest.mark.parametrize("workers", [0, 1])
def test_training_crops_and_flips_move_both(config: DataConfig, workers: int) -> None:
    config = replace(config, loader_workers=workers, crop_area=(0.3, 1.0))
    loader = train_batches(config, image_size=48, batch_size=16, seed=2, stop=64)
    for batch in loader:
        assert batch.masks is not None
        for image, mask in zip(batch.images.permute(0, 2, 3, 1).numpy(), batch.masks.numpy(), strict=True):
            assert follows(image, mask) > 0.8
            assert mask.max() < 3


@pytest.mark.parametrize(
    ("policy", "name"),
    [(policy, name) for policy in POLICIES for name in sorted(MASKED & {*POLICIES[policy].operations})],
)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_moves_the_pixels_moves_the_mask_with_them(policy: str, name: str, sign: float) -> None:
    image, mask, amount = image_of(1, 4), mask_of(1, 4), Amount(0.15, sign, 0.4, 0.6)
    moved = POLICIES[policy].operations[name](image, amount)
    moved_mask = POLICIES[policy].operations[name](mask, amount)
    inside = moved_mask != IGNORED
    assert 0 < (~inside).sum() < inside.sum()
    assert np.array_equal(moved[..., 0][inside] // 86, moved_mask[inside])
    outside = image.mean((0, 1)).astype(np.uint8) if policy == "geometric" else 128
    assert (moved[~inside] == outside).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_with_a_mask_the_image_becomes_what_it_becomes_without(policy: str) -> None:
    layers = [draws(number)[1:] for number in range(20)]
    images, masks = np.stack([image_of(1, 4)] * 20), np.stack([mask_of(1, 4)] * 20)
    alone = images.copy()
    for pixels, labels in ((images, masks), (alone, None)):
        rand_augment(pixels, labels, layers, policy=POLICIES[policy], magnitude=8)
    assert np.array_equal(images, alone)
    assert set(np.unique(masks)) == {0, 1, 2, IGNORED}
    for number in range(20):
        flip = draws(number)[0]
        flipped, flipped_mask = random_flip_pair(image_of(1, 4), mask_of(1, 4), flip)
        assert flipped_mask is not None
        assert follows(flipped, flipped_mask) == 1


def test_masks_are_resized_by_nearest_neighbour() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (40, 60), dtype=np.uint8)
    header = read_header(png(np.zeros((40, 60, 3), dtype=np.uint8)))
    for box, size in (((0, 0, 40, 60), 23), ((3, 5, 20, 31), 64), ((0, 0, 40, 60), 20)):
        top, left, height, width = box
        crop = torch.from_numpy(mask[top : top + height, left : left + width].copy())[None, None]
        expected = torch.nn.functional.interpolate(crop, (size, size), mode="nearest-exact")[0, 0].numpy()
        assert np.array_equal(decode_mask(png(mask), header, box, (size, size)), expected)
    with pytest.raises(ValueError, match=r"the mask has 60x39 pixels, its image 60x40"):
        decode_mask(png(mask[:39]), header, (0, 0, 40, 60), (16, 16))
    with pytest.raises(ValueError, match=r"of mode RGB; it must be grey"):
        decode_mask(png(np.zeros((40, 60, 3), dtype=np.uint8)), header, (0, 0, 40, 60), (16, 16))


def test_masks_missing_or_unknown_are_refused(folder: Path, tmp_path: Path, config: DataConfig) -> None:
    train, _ = check_data(config, batch_sizes=[16], worker_counts=[1])
    assert (train.kind, train.classes) == ("segmentation", ("low", "middle", "high"))
    labelled = replace(config, val=str(write_shards(tmp_path / "labels", [20])))
    with pytest.raises(DataError, match=r"data\.train is for segmentation and data\.val for classification"):
        check_data(labelled, batch_sizes=[16], worker_counts=[1])


def test_index_recognizes_masks(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"masks alone don't tell the classes"):
        index([str(folder), "--out", str(tmp_path / "out")])
    for classes, message in {
        "nowhere": "--classes nowhere: no such file or folder, and one class alone; name two at least, as in cat,dog",
        "low,no.txt": "low,no.txt: not a readable file of class names",
        "low,mid\ndle,high": r"--classes: the class name 'mid\\ndle' is not one line",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            index([str(folder), "--out", str(tmp_path / "out"), "--classes", classes])
        assert len(str(caught.value).splitlines()) == 1
    whole = load_manifest(str(folder))
    given = [str(folder), str(folder / "manifest.json"), ",".join(whole.classes), json.dumps(whole.classes)]
    for number, classes in enumerate(given):
        out = str(tmp_path / str(number))
        assert index([str(folder), "--out", out, "--classes", classes]) == 0
        assert load_manifest(out).fingerprint == whole.fingerprint

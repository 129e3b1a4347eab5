"""Images of any number of channels: prepared, indexed, checked, loaded, augmented, and their statistics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from datasets.checks import check_data
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.loading.loader import build_eval_loader
from datasets.loading.statistics import channel_statistics
from datasets.prepare.layout import ARRAY_BESIDE, LeftOut, image_files
from datasets.prepare.pyramid import write_copies
from datasets.prepare.sources.image_folder import ImageFolder
from datasets.prepare.sources.masks import Masks
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.resolve import load_manifest
from datasets.shards.tar_index import scan_shard
from datasets.transforms.augment import rand_augment
from datasets.transforms.formats import IGNORED, PixelFormat
from datasets.transforms.randaugment_policies import GEOMETRIC, MASKED, TORCHVISION, Amount
from jobs.index import main as index
from tests.support.bands import bands_of, npy, tiff, write_band_shards
from tests.support.batches import train_batches
from tests.support.odd_folders import put
from tests.support.shards import image_of, mask_of, png, write_shards

ONE_PROCESS = WriterConfig(workers=1)


@pytest.fixture(scope="module", params=["npy", "tif"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_shards(tmp_path_factory.mktemp("bands"), [20, 17], container=request.param)


def config_of(folder: Path, **changes: object) -> DataConfig:
    values = DataConfig(
        train=str(folder),
        val=str(folder),
        num_lanes=4,
        block_size=4,
        loader_workers=0,
        pixel_type="uint16",
        channels=5,
        randaugment_policy="geometric",
        eval_crop="whole",
    )
    return replace(values, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_sees_the_values_as_they_are_stored(folder: Path, workers: int) -> None:
    config = config_of(folder, loader_workers=workers)
    batches = list(build_eval_loader(config, image_size=40, batch_size=10, rank=0, world_size=1))
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1)
    assert images.dtype == torch.float32
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    for number, image in enumerate(images.numpy()):
        assert np.array_equal(image, bands_of(number % 2, number))


def test_training_batches_are_a_function_of_the_cursor(folder: Path) -> None:
    def batches(cursor: int, workers: int) -> list[torch.Tensor]:
        config = config_of(folder, loader_workers=workers)
        loader = train_batches(config, image_size=24, magnitude=9, seed=2, cursor=cursor, stop=40)
        return [batch.images for batch in loader]

    whole, rest = batches(0, 0), batches(16, 1)
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], rest, strict=True))
    assert whole[0].shape == (8, 5, 24, 24)
    assert not torch.equal(whole[0], whole[1])


def test_data_that_would_be_read_otherwise_is_refused_before_it_is_read(folder: Path) -> None:
    cure = "use --data.pixel-type uint16 --data.channels 5 --model.in-channels 5 --data.randaugment-policy geometric"
    for config in (DataConfig(train=str(folder), val=str(folder)), config_of(folder, channels=4)):
        said = f"data.train: the images hold 5 channels of uint16, but they would be read as {config.pixels}: {cure}"
        with pytest.raises(DataError, match=re.escape(said)):
            check_data(config, batch_sizes=[], worker_counts=[])
    check_data(config_of(folder), batch_sizes=[], worker_counts=[])


def test_shards_that_are_indexed_say_what_their_images_hold(tmp_path: Path) -> None:
    folder = write_band_shards(tmp_path / "shards", [6], container="tif")
    (folder / "manifest.json").unlink()
    assert index([str(folder)]) == 0
    assert load_manifest(str(folder)).pixels == PixelFormat("uint16", 5)
    plain = write_shards(tmp_path / "rgb", [4], classes=2)
    (plain / "manifest.json").unlink()
    assert index([str(plain)]) == 0
    assert load_manifest(str(plain)).pixels is None
    with pytest.raises(DataError, match=r"its images hold RGB of 8 bits, those of the other shards of .* 5 channels"):
        load_manifest(f"{folder}::{plain}")


def test_an_array_beside_an_image_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    image = png(image_of(1, 1))
    with wds.TarWriter(str(path)) as tar:
        tar.write({"__key__": "one", "npy": npy(np.zeros((4, 4, 5), np.uint8)), "png": image, "cls": 1})
        tar.write({"__key__": "two", "npy": npy(np.zeros((4, 4, 5), np.uint8)), "cls": 1})
    scan = scan_shard(RemoteFile(str(path), path.stat().st_size, ""))
    assert scan.rows["size"].tolist()[0] == len(image)
    assert scan.skipped == {"files of other extensions": 1}
    assert len(scan.rows) == 2


def test_an_array_in_a_folder_is_an_image_where_no_other_has_its_name(tmp_path: Path) -> None:
    for name in ("a/one.npy", "a/one.JPG", "a/two.npy", "b/one.npy", "b/one.txt"):
        put(tmp_path / name, b"")
    left_out = LeftOut()
    assert [str(path.relative_to(tmp_path)) for path in image_files(tmp_path, tmp_path, left_out)] == [
        "a/one.JPG",
        "a/two.npy",
        "b/one.npy",
    ]
    assert left_out.reasons == {ARRAY_BESIDE: (1, "a/one.npy"), "not an image: .txt": (1, "b/one.txt")}


def test_a_folder_of_arrays_and_tiffs_is_prepared(tmp_path: Path) -> None:
    for number in range(12):
        data = npy(bands_of(number % 2, number)) if number % 3 else tiff(bands_of(number % 2, number))
        put(tmp_path / "in" / ("low", "high")[number % 2] / f"{number}.{'npy' if number % 3 else 'tif'}", data)
    manifests = prepare(ImageFolder(path=tmp_path / "in", val_share=0.3), tmp_path / "out", ONE_PROCESS)
    assert manifests["train"].pixels == PixelFormat("uint16", 5)
    assert "train with --data.pixel-type uint16 --data.channels 5" in str(manifests["train"].source["report"])
    config = config_of(tmp_path / "out/train", val=str(tmp_path / "out/val"))
    (batch,) = build_eval_loader(config, image_size=40, batch_size=10, rank=0, world_size=1)
    assert not batch.damaged
    again = prepare(ImageFolder(path=tmp_path / "in", val_share=0.3), tmp_path / "out", ONE_PROCESS)
    assert again["train"].pixels == PixelFormat("uint16", 5)


def test_images_of_several_kinds_are_refused(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / "in/a" / f"{number}.npy", npy(bands_of(0, number)))
        put(tmp_path / "in/b" / f"{number}.png", png(image_of(1, number)))
    with pytest.raises(DataError, match=r"b/\d.png: it holds RGB of 8 bits, a/\d.npy 5 channels of uint16") as error:
        prepare(ImageFolder(path=tmp_path / "in", val_share=0.5), tmp_path / "out", ONE_PROCESS)
    assert "\n" not in str(error.value)


def test_arrays_with_masks_are_prepared_and_cropped_together(tmp_path: Path) -> None:
    for number in range(8):
        values = image_of(1, number).astype(np.float32) * 100
        put(tmp_path / "in/images" / f"{number}.npy", npy(values))
        put(tmp_path / "in/masks" / f"{number}.png", png(mask_of(1, number)))
    source = Masks(images=tmp_path / "in/images", masks=tmp_path / "in/masks", classes="low,middle,high", val_share=0.5)
    manifests = prepare(source, tmp_path / "out", ONE_PROCESS)
    assert manifests["train"].pixels == PixelFormat("float32", 3)
    config = config_of(tmp_path / "out/train", pixel_type="float32", channels=3, crop_area=(0.3, 1.0))
    loader = train_batches(config, image_size=48, batch_size=4, magnitude=8, seed=2, stop=16)
    for batch in loader:
        assert batch.masks is not None
        seen = batch.masks.numpy() != IGNORED
        follows = (batch.images[:, 0].numpy() // 8600 == batch.masks.numpy())[seen]
        assert follows.mean() > 0.75


def test_copies_are_made_of_rgb_alone(tmp_path: Path) -> None:
    folder = write_band_shards(tmp_path, [4])
    with pytest.raises(DataError, match="smaller copies are made of RGB, and these images hold 5 channels of uint16"):
        write_copies(folder, [16], workers=1, progress=lambda done, total: None)


def test_the_moves_are_those_of_torchvisions_policy_for_any_pixels() -> None:
    rgb = image_of(2, 5)
    deep = np.concatenate([rgb, rgb[..., :2]], axis=2).astype(np.float32) * 3.5
    for name in MASKED & GEOMETRIC.operations.keys():
        for sign in (-1.0, 1.0):
            at = Amount(0.7, sign)
            same = GEOMETRIC.operations[name](rgb, at)
            moved = GEOMETRIC.operations[name](deep, at)
            mask = GEOMETRIC.operations[name](np.zeros(rgb.shape[:2], np.uint8), at)
            inside = mask != IGNORED
            assert np.allclose(moved[..., :3][inside], same[inside] * 3.5)
            assert np.allclose(moved[~inside], deep.mean((0, 1)), rtol=1e-5)
            if name in ("rotate", "translate_x", "translate_y"):  # it shears about the first row and column
                theirs = TORCHVISION.operations[name](rgb, at)
                assert np.abs(same[inside].astype(int) - theirs[inside]).mean() < 2


def test_no_magnitude_changes_nothing() -> None:
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 6)).astype(np.float32)
    before = images.copy()
    rand_augment(images, None, [[0.3, 0.1, 0.5, 0.9]] * 2, policy=GEOMETRIC, magnitude=0)
    assert np.array_equal(images, before)


def test_statistics_are_those_of_the_values(folder: Path) -> None:
    config, manifest = config_of(folder), load_manifest(str(folder))
    values = np.concatenate([bands_of(n % 2, n).reshape(-1, 5) for n in range(37)]).astype(np.float64)
    mean, deviation = channel_statistics(config, manifest)
    assert mean == pytest.approx(values.mean(0), rel=1e-5)
    assert deviation == pytest.approx(values.std(0), rel=1e-5)
    assert channel_statistics(config, manifest, samples=5) == channel_statistics(config, manifest, samples=5)
    with pytest.raises(DataError, match=r"none of 37 images that were tried can be read; .*the image holds 5 channels"):
        channel_statistics(replace(config, channels=6), manifest)


def test_a_channel_without_a_spread_is_not_divided_by_zero(tmp_path: Path) -> None:
    for number in range(4):
        values = np.stack([np.full((4, 4), 7), np.full((4, 4), number)], axis=2)
        put(tmp_path / f"in/{number % 2}/{number}.npy", npy(values.astype(np.uint16)))
    manifests = prepare(ImageFolder(path=tmp_path / "in", val_share=0.5), tmp_path / "out", ONE_PROCESS)
    mean, deviation = channel_statistics(config_of(tmp_path / "out/train", channels=2), manifests["train"])
    assert (mean[0], deviation[0]) == (7.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 4}, "data.channels is 4 and data.pixel_type rgb, which has 3"),
        ({"pixel_type": "uint8", "channels": 0}, "data.channels is 0; it must be at least 1"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(**changes)  # type: ignore[arg-type]

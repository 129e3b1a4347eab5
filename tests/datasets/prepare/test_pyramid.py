"""Smaller copies of shards: the same samples, chosen by a stage's image size."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
import webdataset as wds
from PIL import Image

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.loader import build_eval_loader, sample_order
from datasets.loading.reader import SampleReader
from datasets.prepare import pyramid as pyramid_module
from datasets.prepare.encode import shrunk, shrunk_mask
from datasets.prepare.pyramid import write_copies
from datasets.shards.copies import choose_copy
from datasets.shards.describe import write_manifest
from datasets.shards.resolve import load_manifest
from jobs.index import main as index
from jobs.pyramid import main as pyramid
from tests.support.batches import train_batches
from tests.support.shards import image_of, mask_of, png, write_tar


def jpeg(number: int, height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_of(3, number, height=height, width=width)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of 24 images in all, one of them too small for the copies, with copies of short side 40 and 64."""
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(shard * 12, shard * 12 + 12):
            members[f"d.1/{number}.jpg"] = jpeg(number, *((30, 50) if number == 5 else (120, 160)))
            members[f"d.1/{number}.cls"] = str(number % 3).encode()
        write_tar(tmp_path / f"s-{shard}.tar", members)
    write_manifest(tmp_path, ["s-0.tar", "s-1.tar"], classes=["a", "b", "c"])
    write_copies(tmp_path, [64, 40], workers=2)
    return tmp_path


def keys(folder: Path) -> list[str]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return [f"{sample['__key__']} {sample['cls']}" for sample in wds.WebDataset(urls, shardshuffle=False)]


def config(folder: Path) -> DataConfig:
    return DataConfig(train=str(folder), val=str(folder), num_lanes=4, block_size=4, loader_workers=0)


def test_the_rule_is_one_and_a_quarter_times_the_image_size() -> None:
    copies = (160, 256)
    assert [choose_copy(copies, size) for size in (64, 128, 129, 192, 204, 205, 300)] == [160, 160, 256, 256, 256, 0, 0]
    assert choose_copy((), 128) == 0
    assert choose_copy(copies, 128, (0.1, 0.5), (0.2, 1.0)) == 256  # half the area: 1.41 times the pixels
    assert choose_copy(copies, 128, None, (0.2, 1.0)) == 160


def test_copies_have_the_same_samples_in_the_same_order(folder: Path) -> None:
    manifest = load_manifest(str(folder))
    assert manifest.copies == (40, 64)
    for side in manifest.copies:
        copy = folder / f"short-{side}"
        assert keys(copy) == keys(folder)
        assert load_manifest(str(copy)).shard_counts.tolist() == manifest.shard_counts.tolist()
        shown = [Image.open(io.BytesIO(s["jpg"])) for s in wds.WebDataset(str(copy / "s-0.tar"), shardshuffle=False)]
        assert {min(image.size) for image in shown} == {side, 30}


def test_a_stage_reads_the_smallest_copy_that_allows_its_size_and_the_order_stays(folder: Path) -> None:
    data = config(folder)
    plain = load_manifest(str(folder))
    order = sample_order(data, plain, seed=1)
    for size, side in ((32, 40), (48, 64), (64, 0)):
        loader = train_batches(data, image_size=size, stop=24)
        assert loader.short_side == side
        batches = list(loader)
        labels = [int(order.lane_samples(lane, 0, 2)[row]) % 3 for lane in range(4) for row in range(2)]
        assert batches[0].labels.tolist() == labels
    halved = train_batches(replace(data, crop_area=(0.5, 1.0)), stop=24, crop_area=(0.25, 0.5))
    assert halved.short_side == 64  # crops of half the area: 32 px of them are cut from what 45 px would be cut from
    whole = build_eval_loader(data, image_size=32, batch_size=24, rank=0, world_size=1)
    assert whole.short_side == 0


def test_a_copy_shows_what_the_full_images_show(folder: Path) -> None:
    data = replace(config(folder), crop_area=(0.6, 1.0))

    def images() -> torch.Tensor:
        loader = train_batches(data, batch_size=24, stop=24)
        return next(iter(loader)).images.float()

    small = images()
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"copies": [40, 64]', '"copies": []'))
    full = images()
    assert not torch.equal(small, full)
    assert (small - full).abs().mean() < 0.3 * (small - full.roll(1, 0)).abs().mean()  # beside other images' crops


def test_a_copy_of_other_shards_is_refused_and_a_second_call_writes_only_what_is_gone(folder: Path) -> None:
    gone = folder / "short-40" / "s-1.tar"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(DataError, match=r"short-40: manifest\.json lists s-1\.tar, but there is no such file"):
        train_batches(config(folder), stop=24)
    write_copies(folder, [40], workers=1)
    assert gone.read_bytes() == content
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != gone)
    assert load_manifest(str(folder)).copies == (40, 64)


@pytest.mark.parametrize("again", [False, True], ids=["written", "indexed again"])
@pytest.mark.parametrize("name", ["set", "./set/", "other/../set"])
def test_data_that_was_written_by_a_relative_path_may_be_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: bool
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "set").mkdir()
    for shard in folder.glob("*.tar"):
        shard.rename(tmp_path / "set" / shard.name)
    monkeypatch.chdir(tmp_path)
    write_manifest(Path(name), ["s-0.tar", "s-1.tar"], classes=["a", "b", "c"])
    write_copies(name, [40], workers=1)
    if again:
        assert index([name]) == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    manifest = load_manifest(str(tmp_path / "moved"))
    assert manifest.copies == (40,)
    assert load_manifest(str(tmp_path / "moved" / "short-40")).num_samples == manifest.num_samples == 24


def test_a_damaged_image_is_as_damaged_in_its_copy(tmp_path: Path) -> None:
    whole = simplejpeg.encode_jpeg(image_of(1, 2, height=120, width=90))
    write_tar(tmp_path / "a.tar", {"a.jpg": whole, "a.cls": b"0", "b.jpg": whole[:900], "b.cls": b"0"})
    assert index([str(tmp_path)]) == 0
    write_copies(tmp_path, [40], workers=1)
    full, small = (SampleReader(load_manifest(str(place))) for place in (tmp_path, tmp_path / "short-40"))
    assert len(small.read(0).data) < len(full.read(0).data)
    assert small.read(1) == full.read(1)


def test_masks_shrink_with_their_images_by_nearest_neighbour() -> None:
    image, mask = image_of(1, 2, height=120, width=90), mask_of(1, 2, height=120, width=90)
    copies = shrunk(png(image), "png", 30)[1], shrunk_mask(png(mask), 30)
    small = [Image.open(io.BytesIO(data)) for data in copies]
    assert small[0].size == small[1].size == (30, 40)
    assert set(np.unique(np.asarray(small[1]))) <= {0, 1, 2}


def test_copies_of_shards_in_s3_are_written_to_s3_and_gone_on_with(
    folder: Path, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.glob("s-*.tar"):
        s3.upload(f"{s3_uri}/{path.name}", path)
    index([s3_uri, "--classes", str(folder / "manifest.json")])
    assert pyramid([s3_uri, "--short-side", "64,40", "--workers", "2"]) == 0
    cached = replace(config(folder), cache_dir=str(tmp_path / "cache"))
    far = replace(cached, train=s3_uri)
    for size in (32, 50):
        near_batches, far_batches = (
            list(train_batches(one, image_size=size, magnitude=5.0, stop=24)) for one in (cached, far)
        )
        assert all(torch.equal(a.images, b.images) for a, b in zip(near_batches, far_batches, strict=True))
    # Killed before the manifests: only the shard that is missing is made again.
    s3.delete(f"{s3_uri}/short-40/s-1.tar")
    s3.delete(f"{s3_uri}/short-40/manifest.json")
    before = {file.url: file.etag for file in s3.list_folder(f"{s3_uri}/short-40") if file.url.endswith(".tar")}
    uploaded: list[str] = []
    real = s3.upload
    monkeypatch.setattr(s3, "upload", lambda url, path: uploaded.append(url) or real(url, path))
    monkeypatch.setattr(pyramid_module, "run_tasks", lambda function, tasks, **_: [function(task) for task in tasks])
    monkeypatch.setattr(pyramid_module, "count_one", lambda: None)
    assert pyramid([s3_uri, "--short-side", "40"]) == 0
    assert uploaded == [f"{s3_uri}/short-40/s-1.tar"]
    assert before.items() <= {file.url: file.etag for file in s3.list_folder(f"{s3_uri}/short-40")}.items()
    assert load_manifest(s3_uri).copies == (40, 64)

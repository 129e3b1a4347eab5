"""How much shared memory a node's loaders need: the rule, and what a real loader comes to hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from datasets.config import DataConfig
from datasets.shards.resolve import load_manifest
from datasets.transforms.formats import RGB, PixelType
from jobs.recipes.imagenet import efficientnetv2_s_paper
from model.config import ModelConfig
from pipeline.config import TrainConfig
from pipeline.run.doctor import node_findings
from pipeline.run.provenance import versions
from pipeline.run.shared_memory import MARGIN, pixel_bytes, ranks_of, shared_memory_bytes
from pipeline.task_config import SegmentationConfig
from tests.support.bands import write_band_shards, write_masked_band_shards
from tests.support.batches import train_batches
from tests.support.shards import write_mask_shards, write_shards


def imagenet(workers: int | tuple[int, int], **data: float) -> TrainConfig:
    config = efficientnetv2_s_paper()
    cluster = replace(config.cluster, num_workers=workers, gpus_per_worker=1, cpus_per_worker=10)
    return replace(config, cluster=cluster, data=replace(config.data, **data))


def test_the_rule_of_the_documentation() -> None:
    config = imagenet(32, loader_workers=9)
    training, evaluation = 4096 / 32 * 3 * 300**2, 64 * 3 * 384**2
    assert shared_memory_bytes(config, 4) == pytest.approx(MARGIN * (9 * 3 + 1) * 4 * (training + evaluation))


def test_longer_images_take_as_much_more() -> None:
    assert shared_memory_bytes(imagenet(32, aspect_ratio=2.0), 4) == 2 * shared_memory_bytes(imagenet(32), 4)


@pytest.mark.parametrize(("kind", "channels", "more"), [("uint8", 3, 4), ("uint16", 2, 8 / 3), ("float32", 12, 16)])
def test_values_as_they_are_stored_take_four_bytes_each(kind: PixelType, channels: int, more: float) -> None:
    config = imagenet(32)
    data = replace(config.data, pixel_type=kind, channels=channels, randaugment_policy="geometric")
    bands = replace(config, data=data, model=replace(config.model, in_channels=channels))
    assert shared_memory_bytes(bands, 4) == pytest.approx(more * shared_memory_bytes(config, 4))


def test_masks_take_a_byte_a_pixel() -> None:
    config = imagenet(32)
    stages = tuple(replace(stage, mixup_alpha=0, cutmix_alpha=0, randaugment_magnitude=0) for stage in config.stages)
    masks = replace(config, stages=stages, task=SegmentationConfig(), model=ModelConfig(name="unet_efficientnet_b0"))
    assert shared_memory_bytes(masks, 4) == pytest.approx(4 / 3 * shared_memory_bytes(config, 4))


def test_fewer_workers_have_larger_shares_and_no_loaders_none() -> None:
    assert shared_memory_bytes(imagenet((4, 32)), 4) > shared_memory_bytes(imagenet(32), 4)
    # Of 4 to 32 workers, 4 on this node: all of a batch is here when there are only 4.
    assert shared_memory_bytes(imagenet((4, 32)), 4) == shared_memory_bytes(imagenet(4), 4)
    assert shared_memory_bytes(imagenet(32, loader_workers=0), 4) == 0


def test_a_node_has_the_ranks_that_fit() -> None:
    config = imagenet((4, 32))
    assert ranks_of(config, {"CPU": 44, "GPU": 4}) == 4
    assert ranks_of(config, {"CPU": 20, "GPU": 4}) == 2
    assert ranks_of(config, {"CPU": 2}) == 0
    assert ranks_of(imagenet(2), {"CPU": 44, "GPU": 4}) == 2


@pytest.mark.parametrize(("there", "is_well"), [(2e9, False), (4e9, True)])
def test_the_doctor_says_how_much_is_missing(there: float, is_well: bool) -> None:
    facts = dict.fromkeys(("storage", "tracking"), "") | {"versions": versions(), "time": time.time(), "disk": "/"}
    facts |= {"disk_free": 1e12, "shared_memory": there}
    found = node_findings("node a", facts, versions(), disk_gb=1, shared=3e9)
    (cure,) = [finding.cure for finding in found if finding.name == "node a, shared memory"]
    assert (cure == "") == is_well
    assert is_well or "3.0 GB" in cure


WRITERS: dict[str, Callable[[Path], Path]] = {
    "RGB": lambda folder: write_shards(folder, [96]),
    "masks": lambda folder: write_mask_shards(folder, [96]),
    "bands": lambda folder: write_band_shards(folder, [96]),
    "masks of bands": lambda folder: write_masked_band_shards(folder, 96),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_loaders_hold_all_that_the_rule_counts_and_no_more_than_its_margin(kind: str, tmp_path: Path) -> None:
    manifest = load_manifest(str(WRITERS[kind](tmp_path / "train")))
    pixels = manifest.pixels or RGB
    data = DataConfig(
        train=str(tmp_path / "train"), loader_workers=2, prefetch_batches=2, block_size=16,
        pixel_type=pixels.kind, channels=pixels.channels, randaugment_policy="geometric",
    )  # fmt: skip
    config = replace(imagenet(1), data=data, model=ModelConfig(in_channels=pixels.channels))
    if manifest.kind == "segmentation":
        config = replace(config, task=SegmentationConfig(), model=replace(config.model, name="unet_efficientnet_b0"))
    before = segments()
    batches = train_batches(data, image_size=128, batch_size=24, seed=0, stop=96 * 4)
    full = (2 * 2 + 1) * 24 * pixel_bytes(config) * 128**2
    for number, _batch in enumerate(batches):
        held = 0
        while held < full:  # the test's own time limit ends it
            held = sum((segments() | before).values()) - sum(before.values())
            assert held <= MARGIN * full
            time.sleep(0.01)
        if number == 2:
            break


def segments() -> dict[int, int]:
    """Return what this process and its children hold of /dev/shm for tensors: {inode: bytes}."""
    found: dict[int, int] = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(OSError):  # a process that ends
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if "/dev/shm/torch_" in line:
                    area, _, _, _, inode, *_ = line.split()
                    first, end = (int(address, 16) for address in area.split("-"))
                    found[int(inode)] = end - first
        for file in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):  # closed in the meantime
                if str(file.readlink()).startswith("/dev/shm/torch_"):
                    status = file.stat()
                    found[status.st_ino] = status.st_size
    return found

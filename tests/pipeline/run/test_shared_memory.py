"""How much shared memory a node's loaders need: the rule, and what a real loader comes to hold."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.config import DataConfig
from datasets.loading.loader import build_loader
from jobs.recipes.imagenet import efficientnetv2_s_paper
from pipeline.config import TrainConfig
from pipeline.run.doctor import node_findings
from pipeline.run.provenance import versions
from pipeline.run.shared_memory import MARGIN, ranks_of, shared_memory_bytes
from tests.support.shards import write_shards


def imagenet(workers: int | tuple[int, int], **data: int) -> TrainConfig:
    config = efficientnetv2_s_paper()
    cluster = replace(config.cluster, num_workers=workers, gpus_per_worker=1, cpus_per_worker=10)
    return replace(config, cluster=cluster, data=replace(config.data, **data))


def test_the_rule_of_the_documentation() -> None:
    config = imagenet(32, loader_workers=9)
    training, evaluation = 4096 / 32 * 3 * 300**2, 64 * 3 * 384**2
    assert shared_memory_bytes(config, 4) == pytest.approx(MARGIN * (9 * 3 + 1) * 4 * (training + evaluation))


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


def test_a_loader_holds_no_more_than_that(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [48, 48])
    data = DataConfig(train=str(tmp_path / "train"), loader_workers=2, prefetch_batches=2, block_size=16)
    before = shutil.disk_usage("/dev/shm").used
    batches = build_loader(
        data, image_size=256, batch_size=24, magnitude=0, seed=0, cursor=0, stop=96 * 4, rank=0, world_size=1
    )
    one = 24 * 3 * 256**2
    held = []
    for _batch in batches:
        time.sleep(0.3)  # the loader processes fill their queues
        held.append(shutil.disk_usage("/dev/shm").used - before)
        if len(held) == 4:
            break
    assert one * 3 < max(held) <= MARGIN * (2 * 2 + 1) * one

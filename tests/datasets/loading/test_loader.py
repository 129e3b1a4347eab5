from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds

from datasets.config import DataConfig
from datasets.images.labelled import file_batches
from datasets.loading.batch import Batch
from datasets.loading.batch_sampler import TrainSteps
from datasets.loading.loader import build_eval_loader
from datasets.loading.reader import SampleReader
from datasets.loading.sample_order import sample_order
from datasets.shards.resolve import load_manifest
from datasets.transforms.mixing import MixingRule
from tests.support.batches import train_batches

LANES, BATCH = 4, 16


@pytest.fixture(scope="module")
def config(shard_folder: Path) -> DataConfig:
    url = str(shard_folder)
    return DataConfig(train=url, val=url, num_lanes=LANES, block_size=8, window_blocks=2, loader_workers=0)


def load(config: DataConfig, **changes: Any) -> list[Batch]:
    return list(train_batches(config, **{"batch_size": BATCH, "magnitude": 9.0, "seed": 5, "stop": 200, **changes}))


def keys_of(path: Path) -> list[str]:
    return [sample["__key__"] for sample in wds.WebDataset(str(path), shardshuffle=False)]


def as_set(batches: list[Batch]) -> dict[int, tuple[int, bytes]]:
    """Stream index -> (label, pixels)."""
    return {
        int(index): (int(label), image.numpy().tobytes())
        for batch in batches
        for index, label, image in zip(batch.stream_index, batch.labels, batch.images, strict=True)
    }


def batches_of_files(config: DataConfig) -> Iterator[Batch]:
    """Two samples as files are read that nobody has prepared."""
    reader = SampleReader(load_manifest(config.val), None)
    return file_batches(reader, config, image_size=32, batch_size=2, samples=2)


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.stream_index, b.stream_index)
        for a, b in zip(left, right, strict=True)
    )


def test_a_batch_has_the_agreed_shapes_and_lane_major_order(config: DataConfig) -> None:
    batch = load(config, cursor=32)[0]
    assert batch.images.shape == (BATCH, 3, 32, 32)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert batch.stream_index.tolist() == [offset * LANES + lane for lane in range(LANES) for offset in range(8, 12)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_samples_of_every_step_are_the_same_for_any_number_of_workers(config: DataConfig, world_size: int) -> None:
    alone = load(config)
    ranks = [load(config, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        assert as_set([whole]) == as_set([batches[step] for batches in ranks])


def test_order_fingerprints_are_equal_for_one_two_and_four_workers(config: DataConfig) -> None:
    manifest = load_manifest(config.train)
    keys = [f"{shard.name} {key}" for shard in manifest.shards for key in keys_of(shard.path)]

    def fingerprint(world_size: int) -> str:
        digest = hashlib.sha256()
        order = sample_order(config, manifest, seed=5)
        numbers = {"batch_size": BATCH, "cursor": 0, "stop": 800, "world_size": world_size}  # six epochs
        ranks = [TrainSteps(order.fresh(), manifest, rank=rank, **numbers) for rank in range(world_size)]
        for parts in zip(*ranks, strict=True):
            digest.update("\n".join(sorted(keys[number] for step in parts for number in step.ids)).encode())
        return digest.hexdigest()

    assert fingerprint(1) == fingerprint(2) == fingerprint(4)


def test_how_many_crops_are_resized_in_a_row_changes_nothing(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(config)
    for most in (1, 20_000):  # after each one, and after a few, with some left at the end
        monkeypatch.setattr("datasets.loading.samples.RESIZED_TOGETHER", most)
        assert same(load(config), whole)


def test_loader_processes_change_nothing(config: DataConfig) -> None:
    assert same(load(config), load(replace(config, loader_workers=2)))


@pytest.mark.parametrize("processes", [0, 1])
def test_no_loader_draws_of_the_generator_that_a_step_draws_its_dropout_of(config: DataConfig, processes: int) -> None:
    """The next stage's loader is made in a thread, amid a step: what it drew would not be drawn there."""
    config = replace(config, loader_workers=processes)
    before = torch.get_rng_state()
    assert load(config, stop=BATCH)
    assert list(build_eval_loader(config, image_size=32, batch_size=8, rank=0, world_size=1))
    assert list(batches_of_files(config))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_batch_is_mixed_with_arrives_with_it_whatever_process_draws_it(config: DataConfig) -> None:
    rule = MixingRule(mixup_alpha=0.4, cutmix_alpha=0.8, num_lanes=LANES)
    here, there = (load(one, mixing=rule, stop=64) for one in (config, replace(config, loader_workers=1)))
    for batch, other in zip(here, there, strict=True):
        expected = rule.draw(batch.stream_index.numpy(), seed=5, shape=(32, 32))
        assert expected is not None
        for drawn in (batch.mixing, other.mixing):
            assert drawn is not None
            assert all(torch.equal(one, two) for one, two in zip(drawn, expected, strict=True))  # type: ignore[arg-type]
    assert load(config)[0].mixing is None


@pytest.mark.parametrize("cursor", [16, 80, 144])
def test_resume_at_any_cursor_is_the_tail_of_the_whole_stream(config: DataConfig, cursor: int) -> None:
    assert same(load(config, cursor=cursor), load(config)[cursor // BATCH :])


def test_a_change_of_batch_size_goes_on_with_the_same_stream(config: DataConfig) -> None:
    whole = as_set(load(config, stop=160))
    changed = (
        load(config, stop=64) + load(config, batch_size=32, cursor=64, stop=128) + load(config, cursor=128, stop=160)
    )
    assert as_set(changed) == whole


def test_every_sample_is_used_at_most_once_an_epoch(config: DataConfig) -> None:
    # 137 samples, 4 lanes: 136 an epoch; 34 steps of 4.
    pixels = [image for _, image in as_set(load(config, batch_size=LANES, stop=136, magnitude=0)).values()]
    assert len(pixels) == 136


def test_another_seed_is_another_stream(config: DataConfig) -> None:
    assert not same(load(config), load(config, seed=6))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_sample_once_in_the_same_chunks(config: DataConfig, world_size: int) -> None:
    def chunks(rank: int, size: int) -> list[Batch]:
        return list(build_eval_loader(config, image_size=32, batch_size=10, rank=rank, world_size=size))

    alone = chunks(0, 1)
    assert [len(batch.labels) for batch in alone] == [10] * 13 + [7]
    assert torch.cat([batch.labels for batch in alone]).tolist() == [number % 4 for number in range(137)]
    shared = [chunks(rank, world_size) for rank in range(world_size)]
    assert same(alone, [shared[index % world_size][index // world_size] for index in range(14)])


def test_a_stages_crop_area_takes_the_place_of_the_datas(config: DataConfig) -> None:
    assert as_set(load(config, crop_area=(0.2, 0.4))) == as_set(load(replace(config, crop_area=(0.2, 0.4))))
    assert as_set(load(config, crop_area=(0.2, 0.4))) != as_set(load(config))
    assert as_set(load(config, crop_area=config.crop_area)) == as_set(load(config))


# Options of the inputs ---------------------------------------------------------------------------------------------


def mirrored(config: DataConfig, **changes: Any) -> dict[int, list[bool]]:
    """Return for each sample, by its id, whether it was mirrored, use by use."""
    manifest = load_manifest(config.train, weights=config.train_weights)
    order = sample_order(config, manifest, seed=changes.get("seed", 5))
    arguments = {"batch_size": BATCH, "cursor": 0, "stop": 800, "rank": 0, "world_size": 1, **changes}
    arguments.pop("seed", None)
    steps = TrainSteps(order, manifest, **arguments)
    plain, flipped = (
        load(replace(config, **one), magnitude=0.0, stop=800, **changes)
        for one in ({"flip": False, "flip_order": "random"}, {"flip": True})
    )
    found: dict[int, list[bool]] = {}
    for step, before, after in zip(steps, plain, flipped, strict=True):
        for row, number in enumerate(step.ids.tolist()):
            found.setdefault(number, []).append(not torch.equal(before.images[row], after.images[row]))
    return found


@pytest.mark.parametrize("weights", [(), (0.5,), (2.0,)])
def test_alternating_flips_are_drawn_once_and_then_turned_round_at_each_use(
    config: DataConfig, weights: tuple[float, ...]
) -> None:
    config = replace(config, flip_order="alternating", train_weights=weights)
    found = mirrored(config)
    assert sum(len(uses) for uses in found.values()) == 800
    if weights == (2.0,):  # an epoch has both uses of a sample, in any order
        assert all(abs(sum(uses) - len(uses) / 2) <= 1 for uses in found.values())
    else:
        complete = [uses for uses in found.values() if len(uses) == max(map(len, found.values()))]
        assert all(one != two for uses in complete for one, two in itertools.pairwise(uses))
    firsts = [uses[0] for uses in found.values()]
    assert 0.3 < sum(firsts) / len(firsts) < 0.7
    assert mirrored(config, seed=6) != found


def test_alternating_flips_are_the_same_for_any_number_of_workers_and_after_a_resume(config: DataConfig) -> None:
    config = replace(config, flip_order="alternating")
    whole = as_set(load(config, stop=400))
    assert (
        as_set([*load(config, stop=400, rank=0, world_size=2), *load(config, stop=400, rank=1, world_size=2)]) == whole
    )
    tail = as_set(load(config, cursor=240, stop=400))
    assert tail == {index: whole[index] for index in tail}


SIZES: dict[str, Any] = {"random_sizes": (20, 24), "random_size_share": 0.5}


def test_random_sizes_are_a_share_of_the_steps_the_same_on_all_ranks_and_after_a_resume(config: DataConfig) -> None:
    whole = load(config, stop=480, **SIZES)
    sizes = [batch.images.shape[-1] for batch in whole]
    assert 0.3 < sum(size != 32 for size in sizes) / len(sizes) < 0.7
    assert set(sizes) == {20, 24, 32}
    halves = [load(config, stop=480, rank=rank, world_size=2, **SIZES) for rank in range(2)]
    assert [[batch.images.shape[-1] for batch in half] for half in halves] == [sizes, sizes]
    assert as_set([*halves[0], *halves[1]]) == as_set(whole)
    assert same(load(config, cursor=240, stop=480, **SIZES), whole[15:])
    assert [batch.images.shape[-1] for batch in load(config, stop=480, seed=6, **SIZES)] != sizes
    plain = load(config, stop=480)
    assert all(
        torch.equal(one.images, two.images) for one, two in zip(whole, plain, strict=True) if one.images.shape[-1] == 32
    )

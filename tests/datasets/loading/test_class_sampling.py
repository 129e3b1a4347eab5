"""Sampling by classes: exact shares, the same for any workers and after any kill, all images of a class in turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.config import DataConfig, Sampling
from datasets.errors import DataError
from datasets.loading.batch_sampler import TrainSteps
from datasets.loading.class_sampling import ClassSampling, epoch_counts, sampling_lines
from datasets.loading.sample_order import SampleOrder, sample_order
from datasets.shards.resolve import load_manifest
from tests.support.batches import train_batches
from tests.support.shards import write_mask_shards, write_multilabel_shards, write_rare_shards, write_shards

LANES = 4
DIVISORS = (1, 2, 4)
RULES: tuple[Sampling, ...] = get_args(Sampling)
EXPONENTS = {"uniform": 1.0, "sqrt": 0.5, "balanced": 0.0}

classes = st.lists(st.integers(0, 60), min_size=2, max_size=5).filter(lambda counts: sum(counts) >= 2 * LANES)
rules = st.sampled_from(RULES)
seeds = st.integers(0, 2**64 - 1)


def labels_of(counts: list[int], seed: int) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed % 7).permutation(labels)


def make(counts: list[int], seed: int, rule: Sampling, *, block_size: int = 8, window_blocks: int = 3) -> SampleOrder:
    """The order of shards with these many samples of each class, in any order, cut into shards of uneven size."""
    labels = labels_of(counts, seed)
    shards = np.diff([0, *sorted({len(labels) // 3, len(labels) // 2}), len(labels)])
    sampling = ClassSampling.make(labels, len(counts), rule=rule, seed=seed)
    sizes = {"num_lanes": LANES, "block_size": block_size, "window_blocks": window_blocks}
    return SampleOrder(shards, seed=seed, sampling=sampling, **sizes)


def epoch_of(order: SampleOrder, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    length = order.lane_length
    parts = [order.lane_uses(lane, epoch * length, (epoch + 1) * length) for lane in range(LANES)]
    samples, uses = zip(*parts, strict=True)
    return np.concatenate(samples), np.concatenate(uses)


@given(counts=classes, seed=seeds, rule=rules, block=st.integers(1, 30), epoch=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_epoch_is_as_long_as_the_data_and_has_the_classes_in_their_shares(
    counts: list[int], seed: int, rule: Sampling, block: int, epoch: int
) -> None:
    order = make(counts, seed, rule, block_size=block)
    assert order.sampling is not None
    wanted = np.array(counts, dtype=float) ** EXPONENTS[rule] * (np.array(counts) > 0)
    wanted *= sum(counts) / wanted.sum()
    assert order.sampling.taken.sum() == sum(counts)
    assert np.abs(order.sampling.taken - wanted).max() < 1
    samples, _ = epoch_of(order, epoch)
    found = np.bincount(labels_of(counts, seed)[samples], minlength=len(counts))
    assert len(samples) == order.samples_per_epoch == sum(counts) // LANES * LANES
    missing = order.sampling.taken - found  # what doesn't fill every lane's last place
    assert missing.min() >= 0
    assert missing.sum() == sum(counts) % LANES


@given(counts=classes, seed=seeds, rule=rules)
@settings(max_examples=60, deadline=None)
def test_samples_of_a_class_take_turns_over_the_epochs(counts: list[int], seed: int, rule: Sampling) -> None:
    counts = [count // LANES * LANES for count in counts]  # so that an epoch leaves out none
    if sum(counts) < 2 * LANES:
        return
    order, used = make(counts, seed, rule), Counter[int]()
    for epoch in range(4):
        samples, uses = epoch_of(order, epoch)
        for sample in np.unique(samples).tolist():
            assert sorted(uses[samples == sample].tolist()) == [
                used[sample] + k for k in range((samples == sample).sum())
            ]
        used.update(samples.tolist())
        labels = labels_of(counts, seed)
        for label in range(len(counts)):
            each = [used[sample] for sample in np.flatnonzero(labels == label).tolist()]
            assert max(each, default=0) - min(each, default=0) <= 1


@given(counts=classes, seed=seeds, rule=rules, data=st.data())
@settings(max_examples=100, deadline=None)
def test_kills_resumes_other_workers_and_other_batches_change_nothing(
    counts: list[int], seed: int, rule: Sampling, data: st.DataObject
) -> None:
    """A run of random segments, each with fresh state, its own batch size and worker count, against one whole run."""
    whole, cursor = make(counts, seed, rule), 0
    for _ in range(data.draw(st.integers(1, 4), label="segments")):
        world = data.draw(st.sampled_from(DIVISORS), label="workers")
        batch = LANES * data.draw(st.integers(1, 5), label="batch / lanes")
        orders = [make(counts, seed, rule) for _ in range(world)]
        for _ in range(data.draw(st.integers(0, 5), label="steps until the kill")):
            got = [one for rank, order in enumerate(orders) for one in step(order, cursor, batch, rank, world)]
            assert sorted(got) == sorted(step(whole, cursor, batch, 0, 1))
            cursor += batch


def step(order: SampleOrder, cursor: int, batch: int, rank: int, world: int) -> list[tuple[int, int]]:
    share = LANES // world
    found = []
    for lane in range(rank * share, (rank + 1) * share):
        samples, uses = order.lane_uses(lane, cursor // LANES, (cursor + batch) // LANES)
        found += list(zip(samples.tolist(), uses.tolist(), strict=True))
    return found


@given(counts=classes, seed=seeds, rule=rules, start=st.integers(0, 300), size=st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_any_range_of_a_lane_is_the_same_asked_at_once_or_one_by_one(
    counts: list[int], seed: int, rule: Sampling, start: int, size: int
) -> None:
    at_once = make(counts, seed, rule).lane_samples(1, start, start + size)
    order = make(counts, seed, rule)
    backwards = [order.lane_samples(1, offset, offset + 1) for offset in reversed(range(start, start + size))]
    assert at_once.tolist() == [int(sample[0]) for sample in reversed(backwards)]


@given(counts=classes, seed=seeds, rule=rules, offset=st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_the_shards_that_are_fetched_ahead_are_those_that_come(
    counts: list[int], seed: int, rule: Sampling, offset: int
) -> None:
    order = make(counts, seed, rule)
    ends = np.cumsum(order._counts)
    shards, begins = order.fresh().shards_ahead(2, offset, 4096)
    rest = order.lane_length - offset % order.lane_length
    used = np.unique(np.searchsorted(ends, order.lane_samples(2, offset, offset + rest), side="right"))
    assert set(used.tolist()) <= set(shards.tolist())
    assert (np.diff(begins) >= 0).all()


def test_one_rare_image_among_many_fills_half_of_an_epoch() -> None:
    order = make([1000, 1], 3, "balanced")
    samples, uses = epoch_of(order, 2)
    rare = int(np.flatnonzero(labels_of([1000, 1], 3) == 1)[0])
    assert (samples == rare).sum() in (500, 499)  # of 1,001 samples one doesn't fill the lanes
    assert uses[samples == rare].min() >= 2 * 500


def test_the_order_is_pinned() -> None:
    """A change of this list is a change of every such run's order: raise the order's version with it."""
    labels = np.array([0] * 40 + [1] * 20 + [0] * 60 + [2] * 5)
    sampling = ClassSampling.make(labels, 3, rule="sqrt", seed=7)
    order = SampleOrder([40, 25, 60], seed=7, num_lanes=4, block_size=5, window_blocks=3, sampling=sampling)
    assert sampling.taken.tolist() == [75, 33, 17]
    assert order.lane_samples(2, 28, 36).tolist() == [43, 40, 40, 1, 94, 41, 0, 2]
    assert order.fingerprint == "be64f7a3ab6056904673a6d00eba55df"


def test_the_fingerprint_tells_rules_apart() -> None:
    prints = [make([30, 10], 1, rule).fingerprint for rule in RULES]
    plain = SampleOrder([13, 7, 20], seed=1, num_lanes=LANES, block_size=8, window_blocks=3)
    assert len({*prints, plain.fingerprint, make([10, 30], 1, "balanced").fingerprint}) == 5


def test_counts_of_an_epoch_are_whole_numbers_that_fill_it() -> None:
    assert epoch_counts([90, 10, 0], "balanced").tolist() == [50, 50, 0]
    assert epoch_counts([81, 16, 1], "sqrt").tolist() == [63, 28, 7]
    assert epoch_counts([5, 5, 1], "balanced").tolist() == [4, 4, 3]
    assert epoch_counts([7, 2], "uniform").tolist() == [7, 2]


# Of real shards -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rare_shards(tmp_path_factory.mktemp("rare") / "train", [50, 30])


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rare_shards(tmp_path_factory.mktemp("masked") / "train", [50, 30], masks=True)


def config_of(folder: Path, **fields: Any) -> DataConfig:
    url = str(folder)
    small = {"num_lanes": LANES, "block_size": 8, "window_blocks": 2, "loader_workers": 0}
    return DataConfig(train=url, val=url, **{**small, "sampling": "balanced", **fields})


def test_steps_of_a_run_have_the_classes_alike_for_any_number_of_workers(rare: Path) -> None:
    config, manifest = config_of(rare), load_manifest(str(rare))
    order = sample_order(config, manifest, seed=5)
    numbers = {"batch_size": 16, "cursor": 32, "stop": 400}

    def steps(world: int) -> list[list[tuple[int, int]]]:
        ranks = [TrainSteps(order.fresh(), manifest, rank=rank, world_size=world, **numbers) for rank in range(world)]
        return [
            sorted(pair for part in parts for pair in zip(part.ids.tolist(), part.uses.tolist(), strict=True))
            for parts in zip(*ranks, strict=True)
        ]

    assert steps(1) == steps(2) == steps(4)
    labels = np.load(manifest.shards[0].index_url)["label"]
    taken = np.bincount(labels[[sample for step in steps(1) for sample, _ in step]], minlength=3)
    assert taken / taken.sum() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert manifest.class_counts == (70, 8, 2)


def test_images_with_masks_are_sampled_as_those_with_labels_and_resume_amid_an_epoch(rare: Path, masked: Path) -> None:
    """Their order is that of the classes beside the masks; each is taken as it is with the same numbers as labels."""
    manifest = load_manifest(str(masked))
    assert (manifest.kind, manifest.class_counts) == ("segmentation", (70, 8, 2))
    order, of_labels = (
        sample_order(config_of(folder), load_manifest(str(folder)), seed=5) for folder in (masked, rare)
    )
    assert order.fingerprint == of_labels.fingerprint
    config = config_of(masked, crop_area=(0.5, 1.0))
    whole, resumed = (list(train_batches(config, seed=5, batch_size=20, cursor=at, stop=160)) for at in (0, 60))
    for batch, again in zip(whole[3:], resumed, strict=True):
        assert batch.masks is not None
        assert again.masks is not None
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.masks, again.masks)
    shown = torch.cat([batch.masks[:, 16, 16] for batch in whole if batch.masks is not None])
    assert order.sampling is not None
    assert np.bincount(shown.numpy(), minlength=3).tolist() == (2 * order.sampling.taken).tolist()


def test_what_an_epoch_takes_is_said(tmp_path: Path, rare: Path, masked: Path) -> None:
    lines = sampling_lines(config_of(rare), load_manifest(str(rare)), seed=0)
    assert lines == [
        "data.sampling balanced: what an epoch takes",
        "  rarest: 2.50% of the images, 32.50% of an epoch, each image 13 times",
        "  rare: 10.00% of the images, 33.75% of an epoch, each image 3.38 times",
        "  usual: 87.50% of the images, 33.75% of an epoch, each image 0.386 times",
    ]
    assert sampling_lines(config_of(rare, sampling="uniform"), load_manifest(str(rare)), seed=0) == []
    equal = write_shards(tmp_path / "equal", [24])
    for rule in ("sqrt", "balanced"):
        (line,) = sampling_lines(config_of(equal, sampling=rule), load_manifest(str(equal)), seed=0)
        assert line.startswith(f"data.sampling {rule} changes nothing here")
    head, *rest = sampling_lines(config_of(masked), load_manifest(str(masked)), seed=0)
    assert head == "data.sampling balanced: what an epoch takes, each image counted to the rarest class in its mask"
    assert rest == lines[1:]


def test_data_that_have_no_one_class_a_sample_are_refused(tmp_path: Path, rare: Path) -> None:
    several = write_multilabel_shards(tmp_path / "l", [20])
    words = r"data.sampling is balanced: it needs one class an image.*multilabel.*task.positive_weights"
    with pytest.raises(DataError, match=words):
        sample_order(config_of(several), load_manifest(str(several)), seed=0)
    masks = write_mask_shards(tmp_path / "m", [20])
    with pytest.raises(
        DataError, match=r"3 classes in a .cls file beside its mask.*prepare .* again into another --out"
    ):
        sample_order(config_of(masks), load_manifest(str(masks)), seed=0)
    with pytest.raises(DataError, match=r"data.sampling is sqrt and data.train_weights is given: leave out one"):
        sample_order(config_of(rare, sampling="sqrt", train_weights=(1.0,)), load_manifest(str(rare)), seed=0)
    unlabelled = write_shards(tmp_path / "none", [20], labels=False)
    with pytest.raises(DataError, match="not every sample has one of the manifest's 4 classes"):
        sample_order(config_of(unlabelled), load_manifest(str(unlabelled)), seed=0)


def test_uniform_is_the_order_of_old(rare: Path, masked: Path) -> None:
    sizes = {"num_lanes": LANES, "block_size": 8, "window_blocks": 2}
    for folder in (rare, masked):
        config, manifest = config_of(folder, sampling="uniform"), load_manifest(str(folder))
        old = SampleOrder(manifest.shard_counts, seed=5, **sizes)
        assert sample_order(config, manifest, seed=5).fingerprint == old.fingerprint
        assert sample_order(replace(config, sampling="sqrt"), manifest, seed=5).fingerprint != old.fingerprint

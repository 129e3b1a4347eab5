from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.loading.sample_order import SampleOrder

LANES = 12
DIVISORS = (1, 2, 3, 4, 6, 12)

manifests = st.lists(st.integers(0, 90), min_size=1, max_size=8).filter(lambda counts: sum(counts) >= LANES)
seeds = st.integers(0, 2**64 - 1)


def make(counts: list[int], seed: int = 1, *, block_size: int = 8, window_blocks: int = 3) -> SampleOrder:
    return SampleOrder(counts, seed=seed, num_lanes=LANES, block_size=block_size, window_blocks=window_blocks)


def step(order: SampleOrder, cursor: int, batch: int, rank: int, world: int) -> list[int]:
    """The sample ids of one rank in the step at `cursor`, as the loader asks for them."""
    share = LANES // world
    start, stop = cursor // LANES, (cursor + batch) // LANES
    lanes = range(rank * share, (rank + 1) * share)
    return [int(sample) for lane in lanes for sample in order.lane_samples(lane, start, stop)]


@given(counts=manifests, seed=seeds, block=st.integers(1, 40), window=st.integers(1, 6), epoch=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_an_epoch_uses_every_sample_at_most_once_and_all_but_fewer_than_the_lanes(
    counts: list[int], seed: int, block: int, window: int, epoch: int
) -> None:
    order = make(counts, seed, block_size=block, window_blocks=window)
    length = order.lane_length
    used = np.concatenate([order.lane_samples(lane, epoch * length, (epoch + 1) * length) for lane in range(LANES)])
    assert len(used) == order.samples_per_epoch > sum(counts) - LANES
    assert len(np.unique(used)) == len(used)
    assert used.min() >= 0
    assert used.max() < sum(counts)


@given(counts=manifests, seed=seeds, data=st.data())
@settings(max_examples=100, deadline=None)
def test_kills_resumes_other_workers_and_other_batches_change_nothing(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    """A run of random segments, each with fresh state, its own batch size and worker count, against one whole run."""
    whole = make(counts, seed)
    cursor = 0
    for _ in range(data.draw(st.integers(1, 5), label="segments")):
        world = data.draw(st.sampled_from(DIVISORS), label="workers")
        batch = LANES * data.draw(st.integers(1, 5), label="batch / lanes")
        orders = [make(counts, seed) for _ in range(world)]
        for _ in range(data.draw(st.integers(0, 6), label="steps until the kill")):
            got = sorted(
                sample for rank, order in enumerate(orders) for sample in step(order, cursor, batch, rank, world)
            )
            assert got == sorted(step(whole, cursor, batch, 0, 1))
            cursor += batch


@given(counts=manifests, seed=seeds, start=st.integers(0, 400), size=st.integers(0, 60), lane=st.integers(0, LANES - 1))
@settings(max_examples=150, deadline=None)
def test_any_range_of_a_lane_is_the_same_asked_at_once_or_one_by_one(
    counts: list[int], seed: int, start: int, size: int, lane: int
) -> None:
    at_once = make(counts, seed).lane_samples(lane, start, start + size)
    order = make(counts, seed)
    backwards = [order.lane_samples(lane, offset, offset + 1) for offset in reversed(range(start, start + size))]
    assert at_once.tolist() == [int(sample[0]) for sample in reversed(backwards)]


def test_epochs_and_seeds_differ() -> None:
    order = make([100, 100])
    epochs = [order.lane_samples(0, epoch * order.lane_length, (epoch + 1) * order.lane_length) for epoch in range(2)]
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != make([100, 100], seed=2).lane_samples(0, 0, order.lane_length).tolist()


def test_the_order_is_pinned() -> None:
    """A change of this list is a change of every run's order: raise the order's version with it."""
    order = SampleOrder([40, 25, 60], seed=7, num_lanes=4, block_size=5, window_blocks=3)
    assert order.lane_samples(2, 28, 36).tolist() == [90, 91, 92, 3, 94, 42, 2, 4]
    assert order.fingerprint == "8f5bbbecffc09f8a2b47f60f7cb08330"


def test_the_fingerprint_tells_orders_apart() -> None:
    prints = {
        make([64, 64]).fingerprint,
        make([64, 64], seed=2).fingerprint,
        make([64, 65]).fingerprint,
        make([65, 64]).fingerprint,
        make([64, 64], block_size=2).fingerprint,
        make([64, 64], window_blocks=2).fingerprint,
    }
    assert len(prints) == 6
    assert make([64, 64]).fingerprint == make([64, 64]).fingerprint


def test_class_sorted_shards_still_mix_the_classes_of_a_batch() -> None:
    """1,000 classes in class order, batch 1,024: a full shuffle would show 641 classes on average."""
    order = SampleOrder(np.full(1281, 1000), seed=3, num_lanes=64, block_size=256, window_blocks=64)
    batch = np.concatenate([order.lane_samples(lane, 0, 16) for lane in range(64)])
    assert len(np.unique(batch // 1281)) > 600


def test_memory_follows_the_shards() -> None:
    counts = np.full(1281, 1000)
    order = SampleOrder(counts, seed=3, num_lanes=60, block_size=256, window_blocks=64)
    for lane in range(60):
        order.lane_samples(lane, 987_654, 987_660)
    kept = [array for blocks in order._epochs.values() for array in (blocks.order, blocks._starts)]
    kept += [window.samples for window in order._windows.values()]
    assert sum(array.nbytes for array in kept) < 1281 * 64 + 60 * 64 * 256 * 8 + 1_000


def test_an_epoch_has_no_more_than_about_a_million_blocks() -> None:
    huge = SampleOrder(np.full(100_000, 10_000), seed=3, num_lanes=64, block_size=256, window_blocks=64)
    assert (huge.block_size, huge.window_blocks) == (954, 17)
    assert len(huge._sizes) == 1_100_000
    assert huge._sizes.max() == 910
    assert len(np.unique(huge.lane_samples(5, 0, 1000))) == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_lanes": 0}, "num_lanes is 0"),
        ({"num_lanes": 11}, "only 10 samples"),
        ({"block_size": 0}, "block_size is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleOrder([10], **{"seed": 1, "num_lanes": 2, "block_size": 2, "window_blocks": 2, **changes})

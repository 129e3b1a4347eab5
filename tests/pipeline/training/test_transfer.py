"""Batches on their way to the device: the memory that is used again, on a CPU; the order of streams, on stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.loading.batch import Batch
from datasets.transforms.mixing import MixingRule
from pipeline.training.transfer import Slot, Transfer
from tests.support.blocking_copies import BlockingCopies

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def batch_of(size: int, seed: int, *, mixed: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    stream = torch.arange(4) + seed
    rule = MixingRule(mixup_alpha=0.5, cutmix_alpha=0.5, num_lanes=2)
    mixing = rule.draw(stream.numpy(), seed=seed, shape=(size, size)) if mixed else None
    return Batch(images, torch.arange(4), stream, None, mixing=mixing)


def tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.each(lambda one: found.append(one) or one)  # type: ignore[func-returns-value]
    return found


def test_on_a_cpu_a_batch_is_handed_over_as_it_is() -> None:
    batch = batch_of(8, 0)
    with Transfer(CPU).on_device(batch) as there:
        assert there is batch


def test_the_next_batch_of_the_same_shapes_takes_the_same_memory() -> None:
    slot, one, other = Slot(CPU), batch_of(8, 1), batch_of(8, 2)
    places = [tensor.data_ptr() for tensor in tensors_of(slot.hold(one))]
    there = slot.hold(other)
    assert [tensor.data_ptr() for tensor in tensors_of(there)] == places
    for copy, original in zip(tensors_of(there), tensors_of(other), strict=True):
        assert torch.equal(copy, original)
        assert copy.stride() == original.stride()
        assert copy.data_ptr() != original.data_ptr()


def test_another_size_or_another_kind_of_batch_takes_memory_of_its_own() -> None:
    slot = Slot(CPU)
    for batch in (batch_of(8, 1), batch_of(16, 2), batch_of(16, 3, mixed=False), batch_of(16, 4)):
        there = slot.hold(batch)
        assert there.images.shape == batch.images.shape
        assert (there.mixing is None) == (batch.mixing is None)
        assert all(torch.equal(*pair) for pair in zip(tensors_of(there), tensors_of(batch), strict=True))


def test_to_a_gpu_the_host_waits_for_no_copy_and_the_memory_is_taken_again() -> None:
    one, other = batch_of(8, 1), batch_of(8, 2)
    with FakeTensorMode() as mode, BlockingCopies() as copies:
        slot = Slot(GPU)
        first = slot.hold(one.each(mode.from_tensor))
        second = slot.hold(other.each(mode.from_tensor))
    assert {tensor.device for tensor in tensors_of(first)} == {GPU}
    assert all(after is before for before, after in zip(tensors_of(first), tensors_of(second), strict=True))
    assert second.images.stride() == other.images.stride()
    assert not copies.found


class Streams:
    """Stands in for CUDA's streams and keeps what they are told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.current = "computing"

    def stream(self, name: str) -> Stream:
        return Stream(self, name)

    @contextmanager
    def entered(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_event(self, event: str) -> None:
        self.streams.told.append(f"{self.name} waits for {event}")

    def wait_stream(self, other: Stream) -> None:
        self.streams.told.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        event = f"the end of {self.streams.told[-1]}"
        self.streams.told.append(f"{self.name} records {event}")
        return event


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    slots: list[Slot] = []

    def hold(self: Slot, batch: Batch) -> Batch:
        if not any(self is known for known in slots):
            slots.append(self)
        place = next(number for number, known in enumerate(slots) if known is self)
        made.told.append(f"batch {int(batch.stream_index[0])} into slot {place} on {made.current}")
        return batch

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.stream("copying"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.stream("computing"))
    monkeypatch.setattr(torch.cuda, "stream", made.entered)
    monkeypatch.setattr(Slot, "hold", hold)
    return made


def test_a_batch_is_copied_while_the_one_before_is_used_and_never_into_memory_that_is_in_use(streams: Streams) -> None:
    transfer = Transfer(GPU)
    for number in range(3):
        with transfer.on_device(batch_of(8, number)) as there:
            streams.told.append(f"step {int(there.stream_index[0])} on {streams.current}")
    assert streams.told == [
        "batch 0 into slot 0 on copying",
        "computing waits for copying",
        "step 0 on computing",
        "computing records the end of step 0 on computing",
        "batch 1 into slot 1 on copying",  # it waits for nothing: step 0 may still run
        "computing waits for copying",
        "step 1 on computing",
        "computing records the end of step 1 on computing",
        "copying waits for the end of step 0 on computing",  # the step before the last, not the last
        "batch 2 into slot 0 on copying",
        "computing waits for copying",
        "step 2 on computing",
        "computing records the end of step 2 on computing",
    ]

"""Batches on their way to the device. On a CPU there are no streams: what is left is the memory that is used again."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.loading.batch import Batch
from datasets.transforms.mixing import MixingRule
from pipeline.training.transfer import Slot, Transfer

CPU = torch.device("cpu")


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

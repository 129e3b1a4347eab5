from __future__ import annotations

import torch
from torch import Tensor

from pipeline.checkpoint.host_copy import laid_out, to_host

TENSORS = [
    torch.tensor(7),
    torch.arange(5, dtype=torch.int64),
    torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    torch.randn(3, 3).bfloat16(),
    torch.empty(0, 4),
    torch.randn(6, 6)[::2, ::3],
    torch.randn(1).expand(4),
    torch.tensor([True, False]),
]


def test_tensors_of_any_layout_fit_into_one_piece_of_memory() -> None:
    copies = laid_out(TENSORS, pinned=False)
    for copy, one in zip(copies, TENSORS, strict=True):
        copy.copy_(one)
    for copy, one in zip(copies, TENSORS, strict=True):  # none lies in another
        assert torch.equal(copy, one)
        assert copy.dtype == one.dtype
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert copies[2].stride() == TENSORS[2].stride()  # the saver would copy it again, else nothing is gained
    assert all(copy.is_contiguous() for copy in copies[5:7])


def test_a_copy_shares_no_memory_and_keeps_the_rest() -> None:
    value = {"a": [TENSORS[1], (TENSORS[2], 3)], "b": None}
    copy = to_host(value)
    assert copy["b"] is None
    assert copy["a"][1][1] == 3
    assert isinstance(copy["a"][1], tuple)
    pairs: list[tuple[Tensor, Tensor]] = [(copy["a"][0], TENSORS[1]), (copy["a"][1][0], TENSORS[2])]
    for one, original in pairs:
        assert torch.equal(one, original)
        assert one.data_ptr() != original.data_ptr()

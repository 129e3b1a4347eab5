"""Loader processes: what their threads and batches have in common."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

Item = TypeVar("Item")


def limit_blas(threads: int) -> None:
    """Have NumPy's linear algebra use so many threads in this process.

    By itself it takes one a core, in every process of a node, and they spin between small products.
    """
    threadpool_limits(threads, "blas")


def one_thread(number: int) -> None:
    """Begin a loader process, the `number`-th of its pool."""
    limit_blas(1)


def blas_kernel() -> str:
    """Return the name of the BLAS kernel that NumPy chose for this processor, such as OpenBLAS's `SkylakeX`."""
    kernels = {library.get("architecture") for library in threadpool_info() if library["user_api"] == "blas"}
    return ", ".join(sorted(filter(None, kernels))) or "unknown"


def simd_features() -> str:
    """Return the processor's features for which NumPy has code of its own here, such as `SSE42 AVX2 FMA3`."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]
    return " ".join([*found.get("baseline", ()), *found.get("found", ())])  # NumPy leaves empty lists out


def unchanged(batch: Item) -> Item:
    """Return what a dataset made: its items are whole batches, so there is nothing to collate."""
    return batch

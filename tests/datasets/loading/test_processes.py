from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

from datasets.config import DataConfig
from datasets.loading.loader import build_eval_loader
from datasets.loading.processes import blas_kernel, limit_blas
from datasets.loading.samples import Samples


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_a_loader_process_multiplies_with_one_thread(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the variables say: more of them wait for each other on the CPU that decodes."""
    limit_blas(2)
    monkeypatch.setattr(Samples, "__getitems__", lambda self, request: RuntimeError(f"threads: {blas_threads()}"))
    config = DataConfig(train=str(shard_folder), val=str(shard_folder), loader_workers=1)
    batches = build_eval_loader(config, image_size=32, batch_size=8, rank=0, world_size=1)
    with pytest.raises(RuntimeError, match=r"^threads: \{1\}$"):
        next(iter(batches))


def test_the_variables_do_not_decide() -> None:
    code = "from tests.datasets.loading.test_processes import *; limit_blas(1); print(blas_threads(), blas_kernel())"
    told = subprocess.run(
        [sys.executable, "-c", code], env={"OPENBLAS_NUM_THREADS": "2"}, capture_output=True, text=True, check=True
    )
    threads, kernel = told.stdout.split()
    assert threads == "{1}"
    assert kernel == blas_kernel() != "unknown"

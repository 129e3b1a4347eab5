from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from datasets.config import DataConfig
from datasets.cpus import usable_cpus
from datasets.loading.loader import build_eval_loader
from datasets.loading.processes import blas_kernel, limit_blas, simd_features
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


WORK = """
import os
import sys
from pathlib import Path
import numpy as np
import torch
from datasets.config import DataConfig
from datasets.loading.loader import build_loader
from datasets.loading.samples import View

def turns():
    "How often each thread of this process was given a CPU, but the one that asks."
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    return {task.name: int((task / "schedstat").read_text().split()[2]) for task in tasks}

def load(policy):
    augmentation = {"randaugment_policy": policy, "randaugment_layers": 4}
    config = DataConfig(train=sys.argv[1], loader_workers=0, num_lanes=4, **augmentation)
    view = View(image_size=160, magnitude=10.0, training=True)
    for _ in build_loader(config, view, batch_size=24, cursor=0, stop=48, rank=0, world_size=1):
        pass

torch.set_num_threads(1)  # as PyTorch does in a loader process
before = turns()
load("torchvision"), load("google")
loaded = turns()
np.ones((20000, 12), np.float32) @ np.ones((12, 12), np.float32)
print(len(before) > 0, loaded == before, turns() == loaded)
"""


@pytest.mark.skipif(usable_cpus() < 2, reason="BLAS has one thread where there is one CPU")
def test_no_thread_but_its_own_works_for_a_batch(shard_folder: Path) -> None:
    """So its CPU time depends on no variable for threads. As a control, a product of matrices has a second one work."""
    variables = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-c", WORK, str(shard_folder)]
    told = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "True", "False"]


def test_the_features_are_those_that_numpy_uses_here() -> None:
    code = "from datasets.loading.processes import simd_features; print(simd_features())"
    off = {"NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", ()))}
    told = subprocess.run([sys.executable, "-c", code], env=off, capture_output=True, text=True, check=True)
    baseline = told.stdout.split()
    assert baseline
    assert simd_features().split()[: len(baseline)] == baseline
    assert len(simd_features().split()) > len(baseline) or not off["NPY_DISABLE_CPU_FEATURES"]

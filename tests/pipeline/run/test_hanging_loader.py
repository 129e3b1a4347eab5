"""A loader process really hangs in a run that really trains; without a cluster (with one: tests/jobs/test_hang.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.storage.open import open_storage
from pipeline.checkpoint.format import Snapshot, latest_valid
from tests.support.killing import ROOT
from tests.support.trainers import assert_same_weights

TIMEOUT_S = 10
"""Long for a step, also on a busy machine."""


def start(data: Path, storage: Path, wait_at: int) -> subprocess.Popen[str]:
    arguments = [str(data), str(storage), str(TIMEOUT_S if wait_at else 0), str(wait_at)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.watched_rank", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def loaders(rank: psutil.Process) -> list[psutil.Process]:
    """The loader processes of a rank, oldest first: a stage's, then the next one's that is made ready."""
    forks = [child for child in rank.children() if child.cmdline() == rank.cmdline()]
    return sorted(forks, key=psutil.Process.create_time)


def trained(data: Path, storage: Path) -> tuple[str, Snapshot]:
    """Run to the end; return what was said and the last checkpoint."""
    process = start(data, storage, 0)
    said, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    snapshot = latest_valid(open_storage(storage))[0]
    assert snapshot is not None
    return said, snapshot


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_run_whose_loader_was_stopped_ends_with_its_stacks_and_resumes_exactly(
    small_data: Path, tmp_path: Path
) -> None:
    process = start(small_data, tmp_path / "hangs", wait_at=96)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    loader = loaders(psutil.Process(process.pid))[0]
    loader.suspend()
    said, log = process.communicate("go on\n", timeout=200)
    assert process.returncode == 1, log
    (path,) = (tmp_path / "hangs/stacks").iterdir()
    assert said.endswith(f"its stacks are in {path}\n")
    of_rank, _, of_loader = path.read_text().partition(f"process {loader.pid}, forked by it, stopped")
    assert "in waiting" in of_rank  # for a batch, as the step's meter counts it
    assert "it does not answer" in of_loader
    said, resumed = trained(small_data, tmp_path / "hangs")
    assert said.startswith("resumes at ")
    assert_same_weights(trained(small_data, tmp_path / "plain")[1], resumed)

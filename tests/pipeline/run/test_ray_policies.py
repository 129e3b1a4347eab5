"""A run of 1 to 2 workers on a cluster that loses nodes with and without notice, and gets another.

Lost workers, servers, drivers and controllers are in `test_chaos.py`.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from datasets.config import DataConfig
from datasets.loading.sample_order import sample_order
from datasets.shards.resolve import load_manifest
from infra.storage.open import open_storage
from jobs.benchmark.nodes import Nodes
from pipeline.checkpoint.format import latest_valid
from pipeline.run.sample_log import VARIABLE
from tests.support.shards import write_shards
from tests.support.used_samples import Group, check_each_once, final_steps, groups

ROOT = Path(__file__).resolve().parents[3]
BATCH = 24
NUM_CLASSES = 4


class Run:
    """`python -m jobs.train` on the cluster, in a process of its own, and what its ranks wrote down."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.samples = folder, folder / "samples"
        write_shards(folder / "train", [100, 140, 61], classes=NUM_CLASSES)
        write_shards(folder / "val", [12], classes=NUM_CLASSES)
        stages = [f"--stages.{index}.{name}" for index in range(4) for name in ("epochs=500", f"batch-size={BATCH}")]
        stages += [f"--stages.{index}.image-size=32" for index in range(4)]
        arguments = [
            *("demo_scratch", "--name", "elastic", "--storage", str(folder / "runs"), "--cluster.address", address),
            *("--cluster.num-workers", "1", "2", "--cluster.grow-check-s", "2", "--cluster.max-failures", "-1"),
            *("--data.train", str(folder / "train"), "--data.val", str(folder / "val"), "--trainer.log-every", "5"),
            *("--trainer.eval-every-epochs", "1000", "--checkpoint.every-epochs", "1"),
            *("--tracking.uri", f"sqlite:///{folder}/mlflow.db", "--tracking.system-metrics", "False"),
        ]
        self.output = folder / "output.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", *arguments, *stages], cwd=ROOT, stdout=output, stderr=output
            )

    def groups(self) -> list[Group]:
        return groups(self.samples)

    def wait_for(self, told: str, reached: Callable[[list[Group]], bool], timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while not reached(self.groups()):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, f"{told}:\n{self.output.read_text()}"
            time.sleep(0.2)

    def wait_for_group(self, number: int, *, workers: int, steps: int = 20) -> None:
        """Wait until the group `number` (from 0) has trained for more than an epoch with so many workers."""

        def reached(found: list[Group]) -> bool:
            return len(found) > number and len(found[number].steps) > steps

        self.wait_for(f"group {number} with {workers} workers", reached)
        assert self.groups()[number].world_size == workers

    def stop(self) -> str:
        """Press Ctrl-C: a checkpoint and the end. Return what was printed."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(300) == 0, self.output.read_text()
        return self.output.read_text()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    (tmp_path / "samples").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "samples"))  # Ray's processes inherit it
    with Nodes(2) as started:
        yield started


@pytest.fixture
def run(nodes: Nodes, tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path, nodes.address)
    yield run
    run.process.kill()
    run.process.wait()


@pytest.mark.soak
@pytest.mark.timeout(850)
def test_every_sample_is_used_once_whatever_comes_and_goes(nodes: Nodes, run: Run) -> None:
    run.wait_for_group(0, workers=2)
    nodes.kill(nodes.nodes[1])
    run.wait_for_group(1, workers=1)
    nodes.add()
    run.wait_for_group(2, workers=2)
    nodes.drain(nodes.nodes[1], grace_s=30)
    run.wait_for_group(3, workers=1)
    nodes.kill(nodes.nodes[1])
    run.wait_for_group(3, workers=1, steps=60)
    printed = run.stop()
    assert re.search(r"node \w{8} is draining", printed)
    assert printed.count("grows from 1 to 2 workers") == 1  # the same line again is not repeated
    trained = _check_samples(run, [2, 1, 2, 1])
    for before, after in ((1, 2), (2, 3)):  # grown, drained: handed over, nothing is trained twice
        assert trained[after].cursors[0] == trained[before].cursors[-1] + BATCH
    _check_record(run)


def _check_samples(run: Run, num_workers: list[int]) -> list[Group]:
    """The groups had so many workers, and used each sample once; return them."""
    trained = run.groups()
    assert [group.world_size for group in trained] == num_workers
    saved, skipped = latest_valid(open_storage(run.folder / "runs" / "elastic"))
    assert saved is not None
    assert skipped == []
    stop = saved.state.cursor
    assert stop == trained[-1].cursors[-1] + BATCH  # stopped with a checkpoint
    steps = final_steps(trained, stop)
    check_each_once(steps, stop=stop, batch_size=BATCH)
    _check_ids(run, steps, stop)
    return trained


def _check_ids(run: Run, steps: dict[int, dict[int, dict[str, list[int]]]], stop: int) -> None:
    """Each epoch takes each of its samples once, and what was decoded are these samples: their labels fit."""
    config = DataConfig(train=str(run.folder / "train"), val=str(run.folder / "val"), block_size=32)
    order = sample_order(config, load_manifest(config.train), seed=0)
    lanes, length = order.num_lanes, order.samples_per_epoch
    ids = np.concatenate([order.lane_samples(lane, 0, stop // lanes)[:, None] for lane in range(lanes)], axis=1).ravel()
    for epoch in range(stop // length):
        assert len(set(ids[epoch * length : (epoch + 1) * length].tolist())) == length
    for ranks in steps.values():
        for line in ranks.values():
            assert line["labels"] == (ids[line["streams"]] % NUM_CLASSES).tolist()


def _check_record(run: Run) -> None:
    """Each row of metrics is in MLflow once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("crescendo")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "KILLED"
    steps = sorted(point.step for point in client.get_metric_history(record.info.run_id, "train/loss"))
    assert len(set(steps)) == len(steps)
    assert set(range(5 * BATCH, steps[-1] + 1, 5 * BATCH)) <= set(steps)

"""What a rank tells, without a cluster: a checkpoint becomes whole only while the run is this one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datasets.config import DataConfig
from infra.storage.base import Storage
from infra.storage.lease import Lease
from infra.storage.open import open_storage
from model.config import ModelConfig
from pipeline.checkpoint.async_writer import SaverStoppedError
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.run.checkpoint_listener import CheckpointListener
from pipeline.run.controller_client import ControllerClient
from pipeline.run.worker_hooks import RankHooks
from tests.support.groups import stage


@dataclass
class Told:
    """Takes the place of a controller's client and of a tracker, and keeps what they are told, in order."""

    ended: str = ""
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def error(self) -> str:
        return self.ended

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: self.calls.append((name, *arguments))


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    lease = Lease(open_storage(tmp_path))
    lease.take()
    return lease


def listener(told: Told, lease: Lease, storage: Storage) -> CheckpointListener:
    return CheckpointListener(told, lease, told, storage)  # type: ignore[arg-type]


def test_rows_are_safe_before_a_checkpoint_is_whole(lease: Lease, tmp_path: Path) -> None:
    told = Told()
    listener(told, lease, open_storage(tmp_path)).before_manifest()
    assert told.calls == [("persist",)]


def test_a_run_that_has_ended_makes_no_checkpoint_whole(lease: Lease, tmp_path: Path) -> None:
    told = Told(ended="shard 3 is damaged")
    with pytest.raises(SaverStoppedError, match="shard 3 is damaged"):
        listener(told, lease, open_storage(tmp_path)).before_manifest()
    assert told.calls == []


def test_a_run_that_another_submission_has_taken_over_makes_no_checkpoint_whole(lease: Lease, tmp_path: Path) -> None:
    told, storage = Told(), open_storage(tmp_path)
    other = Lease(storage, token="another submission's")
    with pytest.raises(SaverStoppedError):
        listener(told, other, storage).before_manifest()
    assert told.calls == []


def test_what_comes_of_a_checkpoint_is_told(lease: Lease, tmp_path: Path) -> None:
    told, storage = Told(), open_storage(tmp_path)
    events = listener(told, lease, storage)
    events.saved("runs/one/checkpoints/24", 24)
    events.waits("a checkpoint waits")
    events.gave_up("no checkpoint could be written")
    events.pruned()
    assert [name for name, *_ in told.calls] == ["saved", "set_tags", "not_saved", "failed", "log_table"]


def test_a_rank_other_than_0_tells_how_far_it_is_and_saves_nothing() -> None:
    told = Told()
    config = TrainConfig(name="x", stages=(stage(),), data=DataConfig(), model=ModelConfig(name="efficientnet_v2_tiny"))
    controller: ControllerClient = told  # type: ignore[assignment]
    hooks = RankHooks(config, controller, rank=1, world_size=2)

    def snapshot() -> Snapshot:
        raise AssertionError("its state is rank 0's")

    hooks.reported(24, 0.25)
    hooks.save(snapshot)
    hooks.close("FINISHED")
    assert told.calls == [("report", 1, 24, 0.25)]

"""What a rank tells, without a cluster: a checkpoint becomes whole only while the run is this one's."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets.config import DataConfig
from infra.storage.base import Storage
from infra.storage.lease import Lease
from infra.storage.open import open_storage
from infra.tracking import system_metrics
from infra.tracking.config import TrackingConfig
from model.config import ModelConfig
from pipeline.checkpoint.async_writer import SaverStoppedError
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.control.controller import StageController
from pipeline.control.replies import JoinReply
from pipeline.run.checkpoint_listener import CheckpointListener
from pipeline.run.rank import Rank
from pipeline.run.worker_hooks import RankHooks, TrackingHooks
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from pipeline.training.class_scores import class_rows
from pipeline.training.final_scores import FinalScores
from tests.support.groups import no_group, plan_of, stage


@dataclass
class Told:
    """Takes the place of a controller's client and of a tracker, and keeps what they are told, in order."""

    ended: str = ""
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def error(self) -> str:
        return self.ended

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: self.calls.append((name, *arguments))


def rank_of(config: TrainConfig, told: Told, **values: Any) -> Rank:
    return Rank(
        config=config,
        controller=told,  # type: ignore[arg-type]
        joined=JoinReply(error="", lease_token="", group=1, tracking_uri="", out_of_memory=()),
        last_stage=0,
        report_stages=0,
        fingerprints=("", ""),
        origin={},
        **values,
    )


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    lease = Lease(open_storage(tmp_path))
    lease.take()
    return lease


def listener(told: Told, lease: Lease, storage: Storage) -> CheckpointListener:
    return CheckpointListener(told, lease, told, storage, lambda rows: [])  # type: ignore[arg-type]


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
    assert [name for name, *_ in told.calls] == [
        "saved",
        "set_tags",
        "not_saved",
        "failed",
        "log_table",
        "log_checkpoints",
    ]


def test_a_rank_other_than_0_tells_how_far_it_is_and_saves_nothing() -> None:
    told = Told()
    config = TrainConfig(name="x", stages=(stage(),), data=DataConfig(), model=ModelConfig(name="efficientnet_v2_tiny"))
    hooks = RankHooks(rank_of(config, told, number=1, world_size=2, local_number=1), lambda: None)

    def snapshot() -> Snapshot:
        raise AssertionError("its state is rank 0's")

    hooks.reported(24, 0.25)
    hooks.save(snapshot)
    hooks.close("FINISHED")
    assert told.calls == [("report", 1, 24, 0.25)]


def test_one_rank_of_a_node_tells_its_load_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(system_metrics, "SystemSampler", lambda: SimpleNamespace(sample=lambda: {"cpu": 7.0}))
    tracking = TrackingConfig(system_interval_s=0.01)
    config = TrainConfig(
        name="x",
        stages=(stage(),),
        data=DataConfig(),
        model=ModelConfig(name="efficientnet_v2_tiny"),
        tracking=tracking,
    )
    hooks = RankHooks(rank_of(config, told, number=2, world_size=4, node="1"), lambda: None)
    deadline = time.monotonic() + 30
    while len(told.calls) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    hooks.close(None)
    assert set(map(str, told.calls)) == {"('loaded', '1', {'cpu': 7.0})"}


def test_rank_0_records_the_load_of_the_other_nodes_at_decision_points() -> None:
    told = Told()
    controller = StageController(plan_of(stage(), num_workers=4), no_group)
    controller.loaded("1", {"cpu": 3.0})
    controller.loaded("2", {"cpu": 5.0})
    controller.loaded("1", {"cpu": 4.0})  # the newest counts
    hooks = object.__new__(TrackingHooks)  # its constructor opens MLflow and storage
    hooks.tracker, hooks.controller = told, controller  # type: ignore[assignment]
    hooks.tracking_uri = ""
    progress = Progress(
        cursor=24, stage=0, spans=(StageSpan(0, stage(), 0, 120),), samples_per_epoch=120, num_workers=4
    )
    for _ in range(2):
        hooks.decide(progress)
    assert told.calls == [("log_load", "1", {"cpu": 4.0}), ("log_load", "2", {"cpu": 5.0})]


def test_the_end_of_a_run_names_the_better_weights_and_keeps_a_table_of_the_classes() -> None:
    told = Told()
    hooks = object.__new__(TrackingHooks)  # its constructor opens MLflow and storage
    hooks.tracker = hooks.controller = told  # type: ignore[assignment]
    scores = FinalScores(weights={"accuracy": 0.9}, average={"accuracy": 0.8}, metric="accuracy", highest=True)
    hooks.weights_compared(scores)
    assert told.calls == [("set_tags", {"final.better": "weights"}), ("note", scores.line)]
    told.calls.clear()
    hooks.classes_evaluated(class_rows(torch.tensor([[3, 1], [0, 0]]), ("a", "b")))
    ((call, path, table),) = told.calls
    assert (call, path) == ("log_table", "classes.json")
    assert json.loads(str(table)) == {
        "columns": ["class", "count", "recall", "precision", "f1", "iou"],
        "data": [["a", 4, 0.75, 1.0, 0.8571, 0.75], ["b", 0, "", 0.0, 0.0, 0.0]],
    }

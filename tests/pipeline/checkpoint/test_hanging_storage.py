"""Storage that hangs, as a network mount whose server is gone: calls never return, and the run's end still comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.storage.base import StorageError
from infra.storage.lease import Lease
from infra.storage.local import LocalStorage
from infra.tracking import tracker as tracking
from infra.tracking.config import TrackingConfig
from infra.tracking.ended import end_record
from infra.tracking.tracker import Tracker
from pipeline.checkpoint.async_writer import Saver
from pipeline.control import controller as controller_module
from pipeline.control.controller import StageController
from pipeline.schedule.stages import Segment
from pipeline.training_config import CheckpointConfig
from tests.support.groups import plan_of, stage
from tests.support.recorders import Events
from tests.support.snapshots import snapshot

NOBODY = TrackingConfig(uri="http://127.0.0.1:9", system_metrics=False, send_interval_s=0.05)
READS = ("read_with_etag", "list", "exists", "download")
WRITES = ("write", "write_if_absent", "write_if_match", "upload", "delete")


class Hanging(LocalStorage):
    """A storage some of whose calls don't return before the test's end, once it `hangs`."""

    def __init__(self, root: Path, hang: tuple[str, ...]) -> None:
        super().__init__(root)
        self.hang, self.hangs = hang, False
        self.release, self.hung = threading.Event(), threading.Event()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name in READS + WRITES and self.hangs and name in self.hang:
            return self.never
        return super().__getattribute__(name)

    def never(self, *_: object) -> None:
        self.hung.set()
        self.release.wait()
        raise StorageError("the test is over")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SPOOL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(controller_module, "RECORD_TIMEOUT_S", 0.2)


@pytest.fixture(params=[READS, WRITES, READS + WRITES], ids=["reads", "writes", "all"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hanging]:
    hanging = Hanging(tmp_path / "run", request.param)
    yield hanging
    hanging.release.set()


class Rank0(Events):
    """What a worker does for a run that waits for its last checkpoint."""

    def __init__(self, storage: Hanging) -> None:
        super().__init__()
        self.storage = storage
        self.tracker = Tracker(NOBODY, "hangs", storage=storage)
        self.record = ""

    def before_manifest(self) -> None:
        self.tracker.persist(0.1)

    def __call__(self, segment: Segment) -> None:
        self.tracker.log_metrics({"train/loss": 1.0}, 24)
        saver = Saver(self.storage, CheckpointConfig(give_up_s=0.3), self)
        saver.take(snapshot(24))
        saver.wait()
        try:
            self.tracker.close("FAILED", 0.1)
        except StorageError as error:
            self.record = str(error)
        raise RuntimeError("the group ends")


@pytest.mark.timeout(60)
def test_the_end_of_a_run_whose_storage_hangs_says_why(storage: Hanging) -> None:
    lease = Lease(storage)
    lease.take()
    storage.hangs = True
    rank0 = Rank0(storage)
    controller = StageController(plan_of(stage()), rank0, lease=lease, record_failure=lambda uri: _end_record(storage))
    rank0.gave_up = controller.failed  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"no checkpoint could be written for \d+ s, the run ends here"):
        controller.run()
    assert storage.hung.is_set()
    assert rank0.saved_at == []
    assert rank0.record.endswith("tracking/unsent.jsonl could not be written: storage does not answer")
    status = controller.status()
    assert status.phase == "failed"
    assert "the run's record could not be closed: not done within 0.2 s" in status.notes


def _end_record(storage: Hanging) -> None:
    end_record(NOBODY, "hangs", storage, "FAILED")


@pytest.mark.timeout(60)
def test_a_group_that_hands_over_does_not_hang_with_its_storage(storage: Hanging) -> None:
    storage.hangs = True
    tracker = Tracker(NOBODY, "hangs", storage=storage)
    tracker.log_metrics({"train/loss": 1.0}, 24)
    with pytest.raises(StorageError, match="storage does not answer"):
        tracker.persist(0.1)
    tracker.abandon()

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.storage.base import Data, Storage, StorageError
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage
from pipeline.checkpoint import async_writer as saver_module
from pipeline.checkpoint.async_writer import Saver
from pipeline.checkpoint.catalog import BestRule, best_checkpoint, describe_checkpoints, list_checkpoints
from pipeline.checkpoint.format import latest_valid, write_checkpoint
from pipeline.training_config import CheckpointConfig
from tests.support.recorders import Events
from tests.support.servers import S3Server
from tests.support.snapshots import snapshot


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "RETRY_S", 0.05)


def evaluated(cursor: int, accuracy: float | None) -> object:
    made = snapshot(cursor)
    if accuracy is not None:
        made.state.evaluation = {"cursor": cursor, "val/accuracy": accuracy}
    return made


def test_one_is_written_and_the_newest_takes_the_place_of_the_one_that_waits(tmp_path: Path) -> None:
    events = Events()
    events.go.clear()
    saver = Saver(open_storage(tmp_path), CheckpointConfig(), events)
    began = time.monotonic()
    for cursor in (24, 48, 72):
        saver.take(snapshot(cursor))
        while cursor == 24 and not list((tmp_path / "checkpoints").glob("*24/optimizer.safetensors")):
            time.sleep(0.01)
    assert time.monotonic() - began < 5
    assert not saver.wait(0.05)
    events.go.set()
    assert saver.wait(10)
    assert events.saved_at == [24, 72]


def test_the_last_k_and_the_best_one_stay(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    saver = Saver(storage, CheckpointConfig(keep=2), Events())
    for cursor, accuracy in ((24, 0.5), (48, 0.9), (72, None), (96, 0.7), (120, float("nan")), (144, None)):
        saver.take(evaluated(cursor, accuracy))  # type: ignore[arg-type]
        assert saver.wait(10)
    keys = list_checkpoints(storage)
    assert [int(key[-6:]) for key in keys] == [48, 120, 144]
    assert best_checkpoint(storage, keys, BestRule("val/accuracy")) == keys[0]
    assert best_checkpoint(storage, keys, BestRule("val/miou")) is None


def test_a_checkpoint_is_told_of_by_the_next_saver_if_its_own_was_killed_before(tmp_path: Path) -> None:
    storage, first, events = open_storage(tmp_path), Events(), Events()
    saver = Saver(storage, CheckpointConfig(keep=1), first)
    for cursor in (24, 48):
        saver.take(snapshot(cursor))
        assert saver.wait(10)
    saver.catch_up()
    assert first.saved_at == [24, 48]
    write_checkpoint(storage, snapshot(72))  # killed before it told of this one, and deleted the one before
    later = Saver(storage, CheckpointConfig(keep=1), events)
    for _ in range(2):
        later.catch_up()
    assert events.saved_at == [72]
    assert [int(key[-6:]) for key in list_checkpoints(storage)] == [72]


class Away(LocalStorage):
    """Storage that takes nothing while it is away."""

    away = True

    def write(self, key: str, *data: Data) -> None:
        if self.away:
            raise StorageError("cannot write: the disk is full")
        super().write(key, *data)


def test_storage_that_is_away_is_tried_again_with_the_newest(tmp_path: Path) -> None:
    storage, events = Away(tmp_path), Events()
    saver = Saver(storage, CheckpointConfig(), events)
    saver.take(snapshot(24))
    saver.take(snapshot(48))
    time.sleep(0.3)
    assert events.saved_at == []
    assert "training continues" in events.lines[0]
    storage.away = False
    assert saver.wait(10)
    assert events.saved_at[-1] == 48


def test_it_gives_up_with_a_clear_line(tmp_path: Path) -> None:
    events = Events()
    saver = Saver(Away(tmp_path), CheckpointConfig(give_up_s=0.2), events)
    saver.take(snapshot(24))
    assert saver.wait(10)
    assert events.ended.startswith("no checkpoint could be written for")
    assert "the disk is full" in events.ended
    saver.take(snapshot(48))
    assert saver.wait(0)


@pytest.mark.parametrize("meets", ["the next checkpoint", "the run's end"])
def test_it_gives_up_on_a_write_that_never_ends(tmp_path: Path, meets: str) -> None:
    events = Events()
    events.go.clear()
    saver = Saver(open_storage(str(tmp_path)), CheckpointConfig(give_up_s=0.2), events)
    saver.take(snapshot(24))
    assert not saver.wait(0.05)
    if meets == "the next checkpoint":
        time.sleep(0.3)
        saver.take(snapshot(48))
    assert saver.wait(10)
    assert (
        events.ended == "no checkpoint could be written for 0 s, the run ends here: writing a file of it does not end"
    )
    events.go.set()
    saver.take(snapshot(72))
    assert saver.wait(0)
    assert not list(tmp_path.rglob("*72*"))


class Slow(LocalStorage):
    """Takes a while for each file."""

    def write(self, key: str, *data: Data) -> None:
        time.sleep(0.15)
        super().write(key, *data)


def test_it_does_not_give_up_on_a_slow_write_that_gets_on(tmp_path: Path) -> None:
    events = Events()
    saver = Saver(Slow(tmp_path), CheckpointConfig(give_up_s=0.4), events)
    for cursor in (24, 48):
        saver.take(snapshot(cursor))
        assert saver.wait(10)
    assert events.saved_at == [24, 48]
    assert events.ended == ""


def test_s3_that_is_killed_in_between_gets_the_checkpoint_later(s3_server: S3Server, s3_uri: str) -> None:
    storage, events = open_storage(s3_uri), Events()
    events.go.clear()
    saver = Saver(storage, CheckpointConfig(), events)
    saver.take(snapshot(24))
    while not storage.exists("checkpoints/000000000000024/optimizer.safetensors"):
        time.sleep(0.05)
    s3_server.kill()
    events.go.set()
    time.sleep(1.0)
    assert events.saved_at == []
    s3_server.start()
    assert saver.wait(60)
    found, skipped = latest_valid(storage)
    assert found is not None
    assert found.state.cursor == 24
    assert skipped == []


def test_the_listing_says_what_is_valid_incomplete_and_corrupt(s3_uri: str) -> None:
    _listed(open_storage(s3_uri))


def _listed(storage: Storage) -> None:
    from pipeline.checkpoint.format import write_checkpoint

    for cursor in (24, 48, 72, 96):
        write_checkpoint(storage, replace(evaluated(cursor, cursor / 100)))  # type: ignore[type-var]
    storage.delete("checkpoints/000000000000048/manifest.json")
    storage.delete("checkpoints/000000000000072/ema.safetensors")
    data = bytearray(storage.read("checkpoints/000000000000096/optimizer.safetensors"))
    data[len(data) // 2] ^= 1
    storage.write("checkpoints/000000000000096/optimizer.safetensors", bytes(data))
    rows = describe_checkpoints(storage)
    assert [row.state for row in rows] == ["valid", "incomplete", "corrupt", "valid"]
    assert rows[0].metrics == {"val/accuracy": 0.24}
    assert rows[0].stage == 1
    assert not rows[0].verified
    verified = describe_checkpoints(storage, verify=True)
    assert [row.verified for row in verified] == [True, False, False, False]
    assert verified[3].state == "corrupt"
    assert "optimizer.safetensors is corrupt" in verified[3].problem

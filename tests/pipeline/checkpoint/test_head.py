"""One writer of a run's checkpoints at a time: an old one that was stopped anywhere, by SIGSTOP, changes nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.storage.base import Data, Storage
from infra.storage.lease import KEY, Lease, LeaseError
from infra.storage.open import open_storage
from pipeline.checkpoint.async_writer import Saver
from pipeline.checkpoint.catalog import describe_checkpoints, list_checkpoints
from pipeline.checkpoint.format import newest_whole, write_checkpoint
from pipeline.checkpoint.head import FencedError, claim, cursor_of, read_head
from pipeline.config import CheckpointConfig
from tests.support.recorders import Events
from tests.support.snapshots import snapshot

STOPPED_AT = ("read_with_etag", "write", "write_if_absent", "write_if_match", "list", "delete")


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path if request.param == "local" else request.getfixturevalue("s3_uri"))


def stop_before_call(storage: Storage, number: int) -> None:
    """Have this process stopped before its `number`-th call of storage, from 0."""
    calls, inside = iter(range(1_000_000)), threading.local()

    def stopping(call: Callable[..., object]) -> Callable[..., object]:
        def stopped(*args: str | Data) -> object:
            if getattr(inside, "call", False):
                return call(*args)
            if next(calls) == number:
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # in this very thread, so here
            inside.call = True
            try:
                return call(*args)
            finally:
                inside.call = False

        return stopped

    for name in STOPPED_AT:
        setattr(storage, name, stopping(getattr(storage, name)))


def save(storage: Storage, epoch: int, *cursors: int) -> Events:
    events = Events()
    saver = Saver(storage, CheckpointConfig(keep=1), events, epoch=epoch)
    for cursor in cursors:
        saver.take(snapshot(cursor))
        assert saver.wait(60)
    return events


def old_writer(uri: str, token: str, group: int, number: int, report: int) -> None:
    """Claim and save twice, stopped once; say how it ended. In a process of its own, which never returns."""
    storage = open_storage(uri)
    stop_before_call(storage, number)
    try:
        events = save(storage, claim(storage, Lease(storage, token=token), group), 120, 180)
        os.write(report, f"saved {events.saved_at}".encode())
    except (FencedError, LeaseError) as error:
        os.write(report, str(error).encode())
    finally:
        os._exit(0)


def contents(storage: Storage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in (*storage.list("checkpoints/"), ".head")}


@pytest.mark.parametrize("taken_over_by", ["another submission", "a newer group"])
def test_a_writer_that_was_stopped_before_any_call_changes_nothing(storage: Storage, taken_over_by: str) -> None:
    points = 0
    while True:
        own = storage.sub(f"run-{points}")
        if not _is_stopped_at(own, points, taken_over_by):
            break
        points += 1
    assert points > 20  # claim, files, manifest, commit, prune: each read and each write


def _is_stopped_at(storage: Storage, number: int, taken_over_by: str) -> bool:
    mine = Lease(storage)
    mine.take()
    reader, report = os.pipe()
    child = os.fork()
    if child == 0:
        old_writer(storage.uri, mine.token, 1, number, report)
    os.close(report)
    if not os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]):
        os.close(reader)
        return False
    new = mine
    if taken_over_by == "another submission":
        new = Lease(storage)
        storage.write(KEY, new._record())
    events = save(storage, claim(storage, new, 2), 180, 240, 300)
    assert events.saved_at == [180, 240, 300]
    before = contents(storage)
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    said = os.read(reader, 1000).decode()
    os.close(reader)
    after = contents(storage)
    assert after[".head"] == before[".head"], number
    assert before.items() <= after.items(), number
    assert [cursor_of(key) for key in list_checkpoints(storage)] == [300]
    found, skipped = newest_whole(storage)
    assert found is not None
    assert (found.state.cursor, skipped) == (300, [])
    assert said.startswith("saved [") or "newer worker group" in said or "was taken over" in said, said
    return True


def test_checkpoints_of_an_earlier_version_are_listed_and_taken_over_into_the_head(storage: Storage) -> None:
    old = [write_checkpoint(storage, snapshot(cursor)) for cursor in (24, 48)]
    storage.delete(f"{old[0]}/manifest.json")
    assert list_checkpoints(storage) == old[1:]
    lease = Lease(storage)
    lease.take()
    epoch = claim(storage, lease, 1)
    assert read_head(storage)[0].keys == tuple(old[1:])
    save(storage, epoch, 72)
    assert [cursor_of(key) for key in list_checkpoints(storage)] == [72]
    assert [row.cursor for row in describe_checkpoints(storage, verify=True) if row.verified] == [72]


def test_an_old_group_of_the_same_submission_and_one_without_a_lease_claim_nothing(storage: Storage) -> None:
    lease = Lease(storage)
    lease.take()
    assert [claim(storage, lease, group) for group in (1, 2)] == [1, 2]
    with pytest.raises(FencedError, match="newer worker group of this run"):
        claim(storage, lease, 1)
    lease.release()
    with pytest.raises(LeaseError, match="was given back or deleted"):
        claim(storage, lease, 3)

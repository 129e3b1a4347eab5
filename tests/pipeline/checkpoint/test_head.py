"""One writer of a run's checkpoints at a time: an old one that was stopped anywhere, by SIGSTOP, changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.storage.base import Data, Storage, StorageAwayError, StorageError
from infra.storage.lease import KEY, Lease, LeaseError
from infra.storage.open import open_storage
from pipeline.checkpoint.async_writer import Saver
from pipeline.checkpoint.catalog import CheckpointError, describe_checkpoints, list_checkpoints
from pipeline.checkpoint.format import latest_valid, write_checkpoint
from pipeline.checkpoint.head import HEAD, FencedError, Writer, claim, cursor_of, epoch_of, held_head
from pipeline.checkpoint.resume import locate
from pipeline.training_config import CheckpointConfig
from tests.support.recorders import Events
from tests.support.snapshots import snapshot

CALLS = ("read_with_etag", "write", "write_if_absent", "write_if_match", "list", "delete")
WRITTEN = ("list {} manifest", "write {} model", "write {} optimizer", "write {} state", "write {} ema")
COMMITTED = ("read .lease", "write {} manifest", "read head", "write_if_match head")
PRUNED = ("read head", "list", "read {} manifest", "read {} manifest", "write_if_match head", "delete")
POINTS = (
    *("claim: read head", "claim: read .lease", "claim: list", "claim: write_if_absent head"),
    *(f"first: {call.format(120)}" for call in (*WRITTEN, *COMMITTED)),
    *(f"first prune: {call.format(cursor)}" for call, cursor in zip(PRUNED, (0, 0, 96, 120, 0, 0), strict=True)),
    *(f"second: {call.format(180)}" for call in (*WRITTEN, *COMMITTED)),
    *(f"second prune: {call.format(cursor)}" for call, cursor in zip(PRUNED, (0, 0, 120, 180, 0, 0), strict=True)),
)
"""Before each of these calls the old writer is stopped."""


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path if request.param == "local" else request.getfixturevalue("s3_uri"))


class OfThisLease(Events):
    """Looks at the lease before a manifest, as rank 0 does."""

    def __init__(self, lease: Lease) -> None:
        super().__init__()
        self.lease = lease

    def before_manifest(self) -> None:
        try:
            self.lease.check()
        except LeaseError as error:
            raise FencedError(str(error)) from error


def save(lease: Lease, writer: Writer, *cursors: int) -> Events:
    events = OfThisLease(lease)
    saver = Saver(lease.storage, CheckpointConfig(keep=1), events, writer=writer)
    for cursor in cursors:
        saver.take(snapshot(cursor))
        assert saver.wait(60)
    return events


def stop_before_call(storage: Storage, number: int) -> None:
    """Have this process stopped before its `number`-th call of storage, from 0, which must be the one of `POINTS`."""
    calls, inside = iter(range(1_000_000)), threading.local()

    def stopping(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def stopped(*args: str | Data) -> object:
            if getattr(inside, "call", False):
                return call(*args)
            if next(calls) == number:
                key = "" if name == "delete" else said_of(str(args[0]))
                said = f"{name.removesuffix('_with_etag')} {key}".strip()
                if POINTS[number].partition(": ")[2] != said:
                    os._exit(1)
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # in this very thread, so here
            inside.call = True
            try:
                return call(*args)
            finally:
                inside.call = False

        return stopped

    for name in CALLS:
        setattr(storage, name, stopping(name, getattr(storage, name)))


def said_of(key: str) -> str:
    found = re.fullmatch(r"checkpoints/0*(\d+)(?:-\d{6}-\w{8})?/(\w+)\.\w+", key)
    return f"{found[1]} {found[2]}" if found else key.removeprefix("checkpoints/").removesuffix(".json")


def old_writer(uri: str, token: str, number: int, report: int) -> None:
    """Claim and save twice, stopped once; say how it ended. In a process of its own, which never returns."""
    storage = open_storage(uri)
    stop_before_call(storage, number)
    lease = Lease(storage, token=token)
    try:
        events = save(lease, claim(storage, lease, 1), 120, 180)
        os.write(report, f"saved {events.saved_at}".encode())
    except BaseException as error:
        os.write(report, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def contents(storage: Storage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.list("checkpoints/")}


@pytest.mark.parametrize("storage", ["local", pytest.param("s3", marks=pytest.mark.soak)], indirect=True)
@pytest.mark.parametrize("number", range(len(POINTS)), ids=[f"{i:02}-{point}" for i, point in enumerate(POINTS)])
def test_a_writer_that_was_stopped_before_a_call_changes_nothing(storage: Storage, number: int) -> None:
    for taken_over_by in ("another submission", "a newer group"):
        outdone(storage.sub(taken_over_by.replace(" ", "-")), number, taken_over_by)


def outdone(storage: Storage, number: int, taken_over_by: str) -> None:
    write_checkpoint(storage, snapshot(96))  # of an earlier version
    mine = Lease(storage)
    mine.take()
    reader, report = os.pipe()
    child = os.fork()
    if child == 0:
        old_writer(storage.uri, mine.token, number, report)
    os.close(report)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]), os.read(reader, 1000)
    new = mine
    if taken_over_by == "another submission":
        new = Lease(storage)
        storage.write(KEY, new._record())
    events = save(new, claim(storage, new, 2), 180, 240, 300)
    assert events.saved_at == [180, 240, 300]
    before = contents(storage)
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    said = os.read(reader, 1000).decode()
    os.close(reader)
    after = contents(storage)
    assert before.items() <= after.items()
    assert [cursor_of(key) for key in list_checkpoints(storage)] == [300]
    found, skipped = latest_valid(storage)
    assert found is not None
    assert (found.state.cursor, skipped) == (300, [])
    # What it had left to do at the last point was to delete what nobody needs.
    assert said.startswith(("LeaseError: ", "FencedError: ")) or POINTS[number] == "second prune: delete", said


def claimed(storage: Storage, group: int = 1) -> tuple[Lease, Writer]:
    lease = Lease(storage)
    lease.take()
    return lease, claim(storage, lease, group)


def cursors(storage: Storage) -> list[int | None]:
    return [cursor_of(key) for key in list_checkpoints(storage)]


def test_checkpoints_of_an_earlier_version_stay_valid_until_newer_ones_take_their_place(storage: Storage) -> None:
    old = [write_checkpoint(storage, snapshot(cursor)) for cursor in (24, 48, 72)]
    storage.delete(f"{old[0]}/manifest.json")
    assert list_checkpoints(storage) == old[1:]
    lease, writer = claimed(storage)
    assert list_checkpoints(storage) == old[1:]
    save(lease, writer, 72)
    assert [epoch_of(key) for key in list_checkpoints(storage)] == [1]
    assert [(row.cursor, row.verified) for row in describe_checkpoints(storage, verify=True)] == [(72, True)]


def test_one_that_an_earlier_version_has_written_meanwhile_or_that_was_put_there_by_hand_is_valid(
    tmp_path: Path,
) -> None:
    storage = open_storage(tmp_path)
    lease, writer = claimed(storage)
    save(lease, writer, 24)
    write_checkpoint(storage, snapshot(48))
    assert cursors(storage) == [24, 48]


def test_an_old_group_of_the_same_submission_and_one_without_a_lease_claim_nothing(storage: Storage) -> None:
    lease = Lease(storage)
    lease.take()
    assert [claim(storage, lease, group).epoch for group in (1, 2)] == [1, 2]
    with pytest.raises(FencedError, match="newer worker group of this run"):
        claim(storage, lease, 1)
    lease.release()
    with pytest.raises(LeaseError, match="was released or deleted"):
        claim(storage, lease, 3)


def test_the_training_loop_of_a_fenced_group_ends_instead_of_training_without_checkpoints(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lease, old = claimed(storage)
    claim(storage, lease, 2)
    saver = Saver(storage, CheckpointConfig(), Events(), writer=old)
    saver.take(snapshot(24))
    for tell in (lambda: saver.wait(60), lambda: saver.take(snapshot(48))):
        with pytest.raises(FencedError, match=r"newer worker group \(epoch 2, this one has 1\)"):
            tell()
    assert cursors(storage) == []
    (row,) = describe_checkpoints(storage)
    assert row.state == "unlisted"


def test_a_snapshot_that_is_tried_again_goes_into_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.checkpoint.async_writer.RETRY_S", 0.05)
    storage = open_storage(tmp_path)
    lease, writer = claimed(storage)
    events, write, refused = OfThisLease(lease), storage.write, iter([True] * 3)

    def some(key: str, *data: Data) -> None:
        if "ema" in key and next(refused, False):
            raise StorageAwayError("away")
        write(key, *data)

    monkeypatch.setattr(storage, "write", some)
    saver = Saver(storage, CheckpointConfig(), events, writer=writer)
    saver.take(snapshot(24))
    assert saver.wait(60)
    assert len(events.lines) == 3
    assert len({name.rpartition("/")[0] for name in storage.list("checkpoints/0")}) == 1
    assert cursors(storage) == [24]


def saved_twice(storage: Storage) -> tuple[Lease, Writer, Saver]:
    """A saver of the lease's first group, which has saved at 24 and 48."""
    lease, writer = claimed(storage)
    saver = Saver(storage, CheckpointConfig(keep=2), OfThisLease(lease), writer=writer)
    for cursor in (24, 48):
        saver.take(snapshot(cursor))
        assert saver.wait(60)
    return lease, writer, saver


def test_a_head_that_was_deleted_by_hand_is_made_anew_with_what_is_there(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lease, _, saver = saved_twice(storage)
    storage.delete(HEAD)
    assert cursors(storage) == [24, 48]
    saver.take(snapshot(72))
    with pytest.raises(FencedError, match=r"head.json was deleted"):
        saver.wait(60)
    again = claim(storage, lease, 2)
    assert again.epoch == 2  # above what is there
    assert cursors(storage) == [24, 48, 72]
    save(lease, again, 96)
    assert cursors(storage) == [96]


def test_checkpoints_that_were_deleted_by_hand_are_not_there_and_hold_up_nothing(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    _, writer, saver = saved_twice(storage)
    shutil.rmtree(tmp_path / list_checkpoints(storage)[-1])
    assert cursors(storage) == [24]
    assert latest_valid(storage)[1] == []
    for cursor in (36, 60):
        saver.take(snapshot(cursor))
        assert saver.wait(60)
    assert cursors(storage) == [36, 60]
    assert [cursor_of(key) for key in held_head(storage, writer)[0].keys] == [36, 60]
    for folder in list_checkpoints(storage):
        shutil.rmtree(tmp_path / folder)
    assert latest_valid(storage) == (None, [])  # as in a new run


def test_a_checkpoint_is_named_by_its_cursor_or_by_its_folder(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lease, writer = claimed(storage)
    save(lease, writer, 24)
    (key,) = list_checkpoints(storage)
    folder = key.rpartition("/")[2]
    for name in ("24", f"{24:015d}", folder):
        where, found = locate(f"{tmp_path}/checkpoints/{name}/")
        assert (where.uri, found) == (str(tmp_path), key)
    with pytest.raises(CheckpointError, match=r"has no valid checkpoint at cursor 48; there are: 24$"):
        locate(f"{tmp_path}/checkpoints/48")


def test_a_head_of_another_version_is_refused_with_the_cure(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write(HEAD, b'{"writer": {"epoch": 1, "newer": 2}, "keys": []}')
    with pytest.raises(StorageError, match=r"head.json can't be read: use the version that wrote it, or delete it"):
        list_checkpoints(storage)

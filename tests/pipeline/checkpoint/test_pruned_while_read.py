"""Reading a run's checkpoints while it prunes them: whatever was listed and is gone is looked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from infra.storage.base import Storage
from infra.storage.lease import Lease
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage
from pipeline.checkpoint import resume
from pipeline.checkpoint.catalog import BestRule, describe_checkpoints, newest_state
from pipeline.checkpoint.format import Snapshot, latest_valid, write_checkpoint
from pipeline.checkpoint.head import MANIFEST, claim, commit, cursor_of, unique_key
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.pruning import prune
from pipeline.inference.trained_model import _readable
from tests.support.snapshots import snapshot

CALLS = ("read_with_etag", "list", "exists", "download")
SCORES = {24: 0.5, 48: 0.4, 72: 0.9}
"""Cursor -> accuracy: at first the older one is the best, then the new one."""
RULE = BestRule("val/accuracy")


def scored(cursor: int) -> Snapshot:
    plain = snapshot(cursor)
    evaluation = {"cursor": cursor, RULE.metric: SCORES[cursor]}
    metadata = RunMetadata(config={"checkpoint": {"best_metric": RULE.metric, "best_is": "highest"}})
    model = plain.model | {"weight": torch.full((2,), float(cursor))}
    return replace(plain, state=replace(plain.state, evaluation=evaluation), metadata=metadata, model=model, ema=None)


class Run:
    """A run that keeps its newest checkpoint and its best one. It has saved at 24 and 48, and saves at 72 by steps."""

    def __init__(self, folder: Path) -> None:
        self.storage = Unhurried(folder)
        lease = Lease(self.storage)
        lease.take()
        self.writer = claim(self.storage, lease, 1)
        self.save(24)
        self.save(48)
        self.steps: list[Callable[[], None]] = [
            lambda: self.save(72),
            lambda: prune(self.storage, 1, RULE, written=self.key, writer=self.writer),
            lambda: self.storage.delete_waiting(lambda name: name.endswith(MANIFEST)),
            lambda: self.storage.delete_waiting(lambda name: True),
        ]

    def save(self, cursor: int) -> None:
        self.key = write_checkpoint(self.storage, scored(cursor), key=unique_key(cursor, self.writer.epoch))
        commit(self.storage, self.key, self.writer)


class Unhurried(LocalStorage):
    """Deletes only when it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.waiting: tuple[str, ...] = ()

    def delete(self, *keys: str) -> None:
        self.waiting += keys

    def delete_waiting(self, which: Callable[[str], bool]) -> None:
        super().delete(*filter(which, self.waiting))


def interrupt(storage: Storage, steps: dict[int, list[Callable[[], None]]]) -> None:
    """Do steps before the calls of a storage that have their number, from 0; those that were done are taken out."""
    calls = count()

    def interrupted(call: Callable[..., object]) -> Callable[..., object]:
        def first_the_steps(*args: object) -> object:
            for step in steps.pop(next(calls), ()):
                step()
            return call(*args)

        return first_the_steps

    for name in CALLS:
        setattr(storage, name, interrupted(getattr(storage, name)))


def newest(storage: Storage) -> int:
    state, _, skipped = newest_state(storage)
    assert skipped == []
    assert state is not None
    return state.cursor


def valid(storage: Storage) -> int:
    found, skipped = latest_valid(storage)
    assert skipped == []
    assert found is not None
    return found.state.cursor


def described(storage: Storage) -> int:
    rows = describe_checkpoints(storage, verify=True)
    assert [row.problem for row in rows if row.problem] == []
    return rows[-1].cursor


def initial_weights(storage: Storage) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "open_storage", lambda uri: storage)
        return int(resume.read_initial_weights(storage.uri)["weight"][0])


def evaluated(storage: Storage) -> int:
    key, stored, notes = _readable(storage, ema=False, best=False)
    assert notes == ()
    assert cursor_of(key) == stored.state.cursor == stored.tensors["weight"][0]
    return stored.state.cursor


def best(storage: Storage) -> int:
    return _readable(storage, ema=False, best=True)[1].state.cursor


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("read", "before"),
    [(newest, 48), (valid, 48), (described, 48), (initial_weights, 48), (evaluated, 48), (best, 24)],
)
def test_a_reader_finds_what_was_valid_before_or_is_valid_now(
    read: Callable[[Storage], int], before: int, at_once: bool, tmp_path: Path
) -> None:
    """Before each call of storage in turn a checkpoint is saved and the others are pruned: all at once, or in steps."""
    for number in count():
        run = Run(tmp_path / str(number))
        steps = {number: run.steps} if at_once else {number + i: [step] for i, step in enumerate(run.steps)}
        storage = open_storage(run.storage.root)
        interrupt(storage, steps)
        assert read(storage) in (before, 72), f"before call {number}"
        if number in steps:  # there is no such call
            break
    assert number > 3

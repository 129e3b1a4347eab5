"""The log of used samples, and that the check which reads it finds what is lost or used twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets.loading.batch import Batch
from pipeline.run import sample_log
from pipeline.run.sample_log import VARIABLE, SampleLog, last_cursor
from tests.support.used_samples import check_each_once, final_steps, groups, lost_and_doubled

BATCH, LANES = 4, 2


class Clock:
    """Time as the log sees it; each file needs a name of its own."""

    now = 100.0

    def time(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    clock = Clock()
    monkeypatch.setattr(sample_log, "time", clock)
    return clock


def batch(cursor: int, rank: int, world_size: int) -> Batch:
    share = LANES // world_size
    lanes = range(rank * share, (rank + 1) * share)
    streams = [offset * LANES + lane for lane in lanes for offset in range(cursor // LANES, (cursor + BATCH) // LANES)]
    return Batch(torch.zeros(len(streams), 3, 1, 1), torch.zeros(len(streams)), torch.tensor(streams))


def train(clock: Clock, cursors: range, world_size: int, *, skip: int = -1) -> None:
    """One group's steps; rank 0 leaves out the one at `skip`."""
    clock.now += 10
    logs = [SampleLog(rank, world_size) for rank in range(world_size)]
    for cursor in cursors:
        for rank, log in enumerate(logs):
            if cursor != skip or rank:
                log.add(batch(cursor, rank, world_size), cursor)


def test_what_a_restart_threw_away_does_not_count(clock: Clock, tmp_path: Path) -> None:
    train(clock, range(0, 20, BATCH), 2)
    train(clock, range(8, 28, BATCH), 1)  # from a checkpoint at 8
    train(clock, range(28, 40, BATCH), 2)
    trained = groups(tmp_path)
    assert [group.world_size for group in trained] == [2, 1, 2]
    check_each_once(final_steps(trained, 40), stop=40, batch_size=BATCH)
    assert lost_and_doubled(final_steps(trained, 40), stop=40) == (0, 0)
    newest = max(tmp_path.iterdir())
    assert (last_cursor(tmp_path), last_cursor(tmp_path, but=[newest])) == (36, 36)  # two ranks
    assert last_cursor(tmp_path, but=list(tmp_path.iterdir())) == -1


@pytest.mark.parametrize("fault", ["gap", "rank"])
def test_what_is_missing_is_found(clock: Clock, tmp_path: Path, fault: str) -> None:
    train(clock, range(0, 20, BATCH), 2, skip=12 if fault == "rank" else -1)
    train(clock, range(24 if fault == "gap" else 20, 40, BATCH), 1)
    with pytest.raises(AssertionError):
        check_each_once(final_steps(groups(tmp_path), 40), stop=40, batch_size=BATCH)
    assert lost_and_doubled(final_steps(groups(tmp_path), 40), stop=40) == (BATCH // (1 + (fault == "rank")), 0)


def test_what_is_used_twice_is_found(clock: Clock, tmp_path: Path) -> None:
    train(clock, range(0, 20, BATCH), 1)
    steps = final_steps(groups(tmp_path), 20)
    steps[8][0]["streams"] = steps[4][0]["streams"]
    assert lost_and_doubled(steps, stop=20) == (BATCH, BATCH)


def test_without_a_folder_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    SampleLog(0, 1).add(batch(0, 0, 1), 0)
    assert list(tmp_path.iterdir()) == []

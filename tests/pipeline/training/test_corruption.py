"""One bad image costs that image; too many of an epoch's end the run, with the same verdict however it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datasets.errors import DataError
from datasets.loading.corruption import is_too_much
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.training.progress import TrainingProgress
from tests.support.configs import small_config
from tests.support.ranks import on_ranks
from tests.support.recorders import Recorder
from tests.support.shards import write_damaged_shards
from tests.support.trainers import make_trainer


def config_of(folder: Path, damaged: set[int], *, val: set[int] | None = None, **data: object) -> TrainConfig:
    write_damaged_shards(folder / "train", damaged, count=132)
    write_damaged_shards(folder / "val", val or set(), count=48)
    config = small_config(folder, str(folder / "runs"))
    stages = tuple(replace(stage, epochs=1, image_size=32) for stage in config.stages)
    return replace(config, stages=stages, data=replace(config.data, **data))  # type: ignore[arg-type]


def test_ten_of_three_thousand_that_come_first_are_below_one_percent() -> None:
    assert not is_too_much(10, 3000, 0.01)
    assert not is_too_much(30, 3000, 0.01)
    assert is_too_much(31, 3000, 0.01)
    assert not is_too_much(9, 10, 0.0)  # a handful is no verdict on the data


def test_damaged_samples_are_counted_by_epoch(tmp_path: Path) -> None:
    progress = TrainingProgress(small_config(tmp_path, str(tmp_path)), 132)
    assert progress.count_damaged({0: 4}) == 4
    assert progress.count_damaged({0: 3, 1: 2}) == 7
    assert progress.state.damaged == [1, 2]
    assert progress.count_damaged({1: 1, 2: 0}) == 3
    assert progress.state.damaged == [2, 0]


def test_a_patch_of_damaged_samples_below_the_limit_costs_only_them(tmp_path: Path) -> None:
    damaged = set(range(40, 53))
    trainer = make_trainer(config_of(tmp_path, damaged, max_damaged=0.1), hooks := Recorder())
    trainer.run()
    assert trainer.progress.span is None
    counts = [row["train/damaged_samples"] for _, row in hooks.rows if "train/damaged_samples" in row]
    assert 2 * len(damaged) <= sum(counts) < 3 * len(damaged)  # the last step begins a third epoch
    assert trainer.state.damaged == [2, sum(counts) - 2 * len(damaged)]


def verdict(config: TrainConfig, hooks: Recorder | None = None, start: Snapshot | None = None) -> tuple[int, str]:
    """Return the cursor at which a run, from its start or a snapshot, ends for its corrupt samples, and its message."""
    trainer = make_trainer(config, hooks or Recorder())
    if start is not None:
        trainer.restore(start)
    with pytest.raises(DataError) as caught:
        trainer.run()
    return trainer.state.cursor, str(caught.value).partition(": ")[0]


def test_the_verdict_is_the_same_for_any_workers_and_after_a_resume(tmp_path: Path) -> None:
    config = config_of(tmp_path, set(range(0, 132, 7)), max_damaged=0.1)
    config = replace(config, checkpoint=replace(config.checkpoint, every_epochs=0.2))
    alone = verdict(config, hooks := Recorder())
    assert "of the 132 samples of an epoch of" in alone[1]
    assert verdict(config, start=hooks.snapshots[0]) == alone
    assert verdict(config, start=hooks.snapshots[1]) == alone
    assert on_ranks(2, tmp_path, verdict, config) == [alone, alone]


def test_damaged_validation_samples_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = set(range(16, 32))  # the whole second chunk
    trainer = make_trainer(config_of(tmp_path, set(), val=damaged, max_damaged=0.5), Recorder())
    metrics = trainer.evaluate(32)
    assert 0 <= metrics["accuracy"] <= 1
    assert f"16 of the 48 samples of {tmp_path}/val are corrupt and left out" in caplog.text
    strict = replace(trainer.config, data=replace(trainer.config.data, max_damaged=0.3))
    with pytest.raises(
        DataError, match=r"16 of the 48 samples of .*/val are corrupt, more than data\.max_damaged=0\.3: .*'0016'"
    ):
        make_trainer(strict, Recorder()).evaluate(32)


def test_an_evaluation_without_any_sample_is_an_error(tmp_path: Path) -> None:
    config = config_of(tmp_path, set(), val=set(range(48)), max_damaged=1.0)
    with pytest.raises(DataError, match=r"48 of the 48 samples of .*/val are corrupt"):
        make_trainer(config, Recorder()).evaluate(32)

"""With which stage a start begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.tracker import Tracker
from pipeline.checkpoint.state import TrainState
from pipeline.run.launch import first_stage
from pipeline.run.preflight import check_run
from tests.support.configs import MakeConfig


def test_a_start_begins_where_the_run_is_and_with_the_last_stage_to_complete_its_record(
    make_config: MakeConfig, sqlite_uri: str, tmp_path: Path
) -> None:
    config = make_config(tracking=TrackingConfig(uri=sqlite_uri, system_metrics=False))
    count, storage = len(config.stages), open_storage(tmp_path / "run")
    ready = check_run(config)
    assert first_stage(ready, storage) == 0
    begun = [
        first_stage(replace(ready, resume_from=TrainState(stage_starts=[*range(stages)])), storage)
        for stages in range(1, count + 2)
    ]
    assert begun == [*range(count + 1)]  # the last one is past the stages: nothing is trained
    tracker = Tracker(config.tracking, config.name, storage=storage)
    tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.flush(60)
    ended = replace(ready, resume_from=TrainState(stage_starts=[*range(count + 1)]))
    assert first_stage(ended, storage) == count - 1
    assert tracker.close("FINISHED", 60)
    assert first_stage(ended, storage) == count

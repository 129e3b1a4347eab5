"""A run's status as a value, as JSON and in another process, perhaps of another version."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from pipeline.control.controller import StageController
from pipeline.control.run_status import RunIdentity, RunStatus, read_status
from pipeline.schedule.decisions import DecisionRecord, NextStage
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from tests.support.groups import no_group, plan_of, stage

KEYS = (
    *("name", "model", "seed", "storage", "progress", "metrics", "left_s", "checkpoint", "checkpoint_waits", "workers"),
    *("age_s", "notes", "noted", "phase", "error", "recoveries", "pending", "started_s", "queued_s", "needs", "waits"),
)
"""Of `jobs.status --json`, on which scripts rely."""


def at_work() -> RunStatus:
    identity = RunIdentity(name="fake", model="efficientnet_v2_tiny", seed=3, storage="s3://bucket/fake")
    controller = StageController(plan_of(stage(), stage((1, 4)), identity=identity), no_group)  # type: ignore[arg-type]
    controller.join(0, "a")
    controller.join(1, "b")
    controller.report(1, 24, 0.25)
    controller.note("a line")
    controller.saved("s3://bucket/fake/checkpoints/24", 24)
    spans = (StageSpan(0, stage(crop_area=(0.3, 1.0)), 0, 120), StageSpan(1, stage((1, 4)), 120, 240))  # type: ignore[arg-type]
    decision = DecisionRecord(24, 0, NextStage(reason="flat")).entry()
    controller.decide(
        Progress(
            cursor=48,
            stage=0,
            spans=spans,
            samples_per_epoch=120,
            num_workers=2,
            metrics={"train/images_per_s": 24.0},
            stage_results=({"samples": 48, "train_s": 2.0},),
            decisions=(decision,),
        )
    )
    controller.ask(NextStage(asked_by="ann@here"))
    return controller.status()


def test_the_json_has_the_keys_that_scripts_rely_on() -> None:
    values = json.loads(json.dumps(at_work().to_json()))
    assert tuple(values) == KEYS
    assert values["progress"]["spans"][0]["stage"]["image_size"] == 32
    assert list(values["checkpoint"]) == ["uri", "cursor", "saved_s", "age_s"]
    assert values["workers"]["quietest"]["rank"] == 0
    assert values["workers"]["waits_most"] == {"rank": 1, "node": "b", "wait_share": 0.25}
    before = StageController(plan_of(stage()), no_group).status().to_json()
    assert before["workers"] == {"count": 0, "nodes": 0}
    assert (before["progress"], before["checkpoint"], before["left_s"]) == (None, None, ())


def test_it_is_the_same_in_another_process() -> None:
    status = at_work()
    assert pickle.loads(pickle.dumps(status)) == status
    before = replace(status, progress=None, checkpoint=None)
    assert pickle.loads(pickle.dumps(before)) == before


@pytest.mark.parametrize("lacks", ["workers", "noted", "progress", "pending"])
def test_of_another_version_what_is_known_is_read(lacks: str) -> None:
    values = at_work().to_json()
    assert read_status(values | {"of_tomorrow": 1}) == read_status(values)
    older = {name: value for name, value in values.items() if name != lacks}
    read = read_status(older)
    assert (read.run.name, read.phase) == ("fake", "training")
    if lacks == "workers":
        assert read.workers is None

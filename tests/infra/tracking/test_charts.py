"""The view of the first charts, as MLflow's page reads it from a tag of the experiment."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from infra.tracking.charts import CHARTS, SCORES, VIEW_TAG, view_text, view_url
from infra.tracking.mlflow_run import make_client, open_experiment
from pipeline.task_config import ClassificationConfig, MultilabelConfig, RegressionConfig, SegmentationConfig

MAX_VALUE = 5000
"""Characters of an experiment's tag that older servers take."""


def state_of(text: str) -> dict[str, Any]:
    """What MLflow's page (`experimentPage.saved-views`) makes of the tag."""
    kind, _, packed = json.loads(text)["state"].partition(";")
    assert kind == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def tag_of(uri: str, experiment_id: str) -> str:
    return str(make_client(uri).get_experiment(experiment_id).tags[VIEW_TAG])


def test_each_chart_is_in_the_first_section_and_the_tag_is_short() -> None:
    state = state_of(view_text(1))
    first, *_ = state["compareRunSections"]
    charts = state["compareRunCharts"]
    assert [tuple(chart["selectedMetricKeys"]) for chart in charts] == [*CHARTS]
    assert {chart["metricSectionId"] for chart in charts} == {first["uuid"]}
    assert len({chart["uuid"] for chart in charts}) == len(CHARTS)
    assert len(view_text(10**13)) < MAX_VALUE


@pytest.mark.parametrize("task", [ClassificationConfig, SegmentationConfig, MultilabelConfig, RegressionConfig])
def test_a_run_of_each_task_has_one_score_and_six_charts_in_all(task: Any) -> None:
    measured = {f"val/{name}" for name in task().metric_names(["a", "b"])}
    assert len(measured & {*SCORES}) == 1
    assert len(CHARTS) - len(SCORES) + 1 == 6


def test_an_experiment_has_the_view_from_its_start_and_an_older_one_from_its_next_run(sqlite_uri: str) -> None:
    new = open_experiment(sqlite_uri, "new", None)
    assert state_of(tag_of(sqlite_uri, new)) == state_of(view_text(1))
    old = make_client(sqlite_uri).create_experiment("old")
    assert open_experiment(sqlite_uri, "old", None) == old
    assert state_of(tag_of(sqlite_uri, old)) == state_of(view_text(1))


def test_a_view_that_a_user_has_changed_stays(sqlite_uri: str) -> None:
    experiment = open_experiment(sqlite_uri, "changed", None)
    make_client(sqlite_uri).set_experiment_tag(experiment, VIEW_TAG, "theirs")
    open_experiment(sqlite_uri, "changed", None)
    assert tag_of(sqlite_uri, experiment) == "theirs"


def test_a_server_that_does_not_take_it_keeps_no_run_from_being_recorded(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def refuse(*_: object) -> None:
        raise MlflowException("no permission")

    old = make_client(sqlite_uri).create_experiment("old")
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    assert open_experiment(sqlite_uri, "old", None) == old


def test_the_address_names_the_view_and_no_password() -> None:
    assert view_url("http://ann:secret@host:5000/", "7").endswith(
        "host:5000/#/experiments/7/runs?viewStateShareKey=crescendo&compareRunsMode=CHART&workflowType=machine_learning"
    )
    assert "secret" not in view_url("http://ann:secret@host:5000/", "7")

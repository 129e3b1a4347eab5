"""The charts of an experiment's runs that matter first: a view that MLflow's page has under *Views*.

MLflow 3.17 keeps such a view as a tag of the experiment (mlflow/server/js, `experimentPage.saved-views`): JSON with a
name and the state of the page. An older server keeps the tag and shows nothing of it.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from infra.redact import redacted

VIEW = "crescendo"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NAME = "Crescendo: first charts"
SECTIONS = ("First", "val", "train", "stage")
"""The first charts, and sections of MLflow's own: what is not named here comes after them."""

SCORES = ("val/accuracy", "val/miou", "val/map", "val/r2")
"""One for each task: MLflow hides the charts of those that no run has."""

CHARTS = (
    ("train/loss", "val/loss"),
    *((score,) for score in SCORES),
    ("stage/image_size",),
    ("train/lr",),
    ("train/images_per_s",),
    ("train/data_wait_share",),
)
"""Metrics of each."""


def view_url(uri: str, experiment_id: str) -> str:
    """Return the address of the charts on a server."""
    query = f"viewStateShareKey={VIEW}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"{redacted(uri).rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def view_text(created_ms: int) -> str:
    """Return the tag's value; `created_ms` orders the views of an experiment."""
    state = zlib.compress(json.dumps(_state()).encode(), 9)
    times = {"createdAt": created_ms, "updatedAt": created_ms}
    return json.dumps({"name": NAME, **times, "state": f"deflate;{base64.b64encode(state).decode()}"})


def _state() -> dict[str, Any]:
    return {
        "compareRunCharts": [_chart(metrics) for metrics in CHARTS],
        "compareRunSections": [
            {"uuid": f"{VIEW}-{name}", "name": name, "display": True, "isReordered": False} for name in SECTIONS
        ],
        "isAccordionReordered": True,  # else MLflow sorts sections by name
        "hideEmptyCharts": True,
    }


def _chart(metrics: tuple[str, ...]) -> dict[str, Any]:
    return {
        "uuid": f"{VIEW}-{metrics[0]}",
        "type": "LINE",
        "metricKey": metrics[0],
        "selectedMetricKeys": list(metrics),
        "metricSectionId": f"{VIEW}-{SECTIONS[0]}",
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }

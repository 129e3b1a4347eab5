from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.prometheus import GAUGES, export_status, gauge_values
from pipeline.control.controller import StageController
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from tests.support.groups import no_group, plan_of, stage

DASHBOARD = Path(__file__).resolve().parents[3] / "infra" / "grafana" / "crescendo.json"


def training() -> dict[str, Any]:
    """The status of a run that trains, as a controller gives it."""
    controller = StageController(plan_of(stage(), stage(), name="measured"), no_group)
    controller.join(0, "a")
    controller.join(1, "b")
    controller.saved("runs/measured/checkpoints/24", 24)
    controller.not_saved("a checkpoint waits for storage")
    metrics = {"train/images_per_s": 48.0, "train/loss": 1.25, "train/data_wait_share": 0.25}
    spans = (StageSpan(0, stage(), 0, 120), StageSpan(1, stage(), 120, 240))
    controller.decide(Progress(cursor=180, stage=1, spans=spans, samples_per_epoch=120, num_workers=2, metrics=metrics))
    return controller.status().to_json()


def test_a_status_gives_all_gauges_and_one_before_training_what_it_knows() -> None:
    values = gauge_values(training())
    assert {*values} == {*GAUGES}
    assert values["crescendo_stage"] == 2
    assert values["crescendo_epoch"] == 1.5
    assert values["crescendo_step_s"] == stage().batch_size / 48
    assert values["crescendo_workers"] == 2
    assert values["crescendo_checkpoint_waits"] == 1
    before = StageController(plan_of(stage(), name="new"), no_group).status().to_json()
    assert {*gauge_values(before)} == {"crescendo_recoveries", "crescendo_workers", "crescendo_checkpoint_waits"}


def test_the_dashboard_asks_for_gauges_that_there_are() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert {re.match(r"ray_(\w+)\{run=~\"\$run\"\}$", expression)[1] for expression in asked} == {*GAUGES}  # type: ignore[index]


@pytest.mark.usefixtures("ray_cluster")
def test_ray_exports_them() -> None:
    import ray

    class Exporter:
        def __init__(self, status: dict[str, Any]) -> None:
            export_status(lambda: status)

        def ready(self) -> bool:
            return True

    actor = ray.remote(Exporter).options(num_cpus=0).remote(training())
    assert ray.get(actor.ready.remote())
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, page = time.monotonic() + 60, ""
    while "ray_crescendo_stage" not in page and time.monotonic() < deadline:
        time.sleep(0.5)
        page = urllib.request.urlopen(url, timeout=10).read().decode()
    ray.kill(actor)
    lines = [line for line in page.splitlines() if line.startswith("ray_crescendo_") and 'run="measured"' in line]
    assert {line.partition("{")[0].removeprefix("ray_") for line in lines} == {*GAUGES}
    assert any(line.startswith("ray_crescendo_stage{") and line.endswith(" 2.0") for line in lines)

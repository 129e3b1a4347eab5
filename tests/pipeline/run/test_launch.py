"""The start of a run's controller, without a cluster: who holds the run's lease when it fails or succeeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from infra.storage import lease as lease_module
from infra.storage.lease import Lease, is_held
from infra.storage.open import open_storage
from jobs.recipes.solar_cells import demo_scratch
from pipeline.control.controller import StageController
from pipeline.control.plan import RunPlan
from pipeline.run import launch
from pipeline.run.controller_client import ControllerLostError
from pipeline.run.preflight import Preflight

CONFIG = demo_scratch()


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preflight:
    """A checked run, on a cluster that isn't there and has no room yet."""
    state = SimpleNamespace(stage_starts=[0, 120], decisions=[])
    monkeypatch.setattr(launch, "with_start", lambda ready: SimpleNamespace(resume_from=state))
    monkeypatch.setattr(launch, "connect", lambda *asked, **more: "no room yet")
    monkeypatch.setattr(launch, "resources_of_nodes", lambda config: [])
    monkeypatch.setattr(launch, "free_reservations", lambda: None)
    monkeypatch.setattr(launch, "has_own_cluster", lambda: True)
    monkeypatch.setattr(lease_module, "RENEW_S", 0.05)
    config = replace(CONFIG, name="launched", storage=str(tmp_path))
    return cast(Preflight, SimpleNamespace(config=config, fingerprints=("train", "val"), finished=False))


def test_the_controller_gets_the_plan_of_what_is_left_and_the_lease(
    ready: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    told: list[str] = []

    def start_actor(*parts: Any, **options: Any) -> object:
        started.extend((*parts, options))
        return object()

    monkeypatch.setattr(launch, "start_actor", start_actor)
    monkeypatch.setattr(launch, "ControllerClient", lambda handle: SimpleNamespace(note=told.append))
    launch.start_controller(ready, num_stages=2)
    cls, plan, runner, options = started
    assert (cls, runner.name, options["name"]) == (StageController, "launched", "run-launched")
    assert isinstance(plan, RunPlan)
    assert (len(plan.stages), plan.first_stage, [segment.last for segment in plan.segments]) == (4, 1, [1])
    assert told == ["no room yet"]
    storage = open_storage(ready.config.folder)
    Lease(storage, token=options["lease"].token).check()  # the controller's now


def test_a_run_whose_controller_is_lost_before_it_was_told_all_gives_its_lease_back(
    ready: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(line: str) -> None:
        raise ControllerLostError("the run's controller was lost")

    monkeypatch.setattr(launch, "start_actor", lambda *parts, **options: object())
    monkeypatch.setattr(launch, "ControllerClient", lambda handle: SimpleNamespace(note=lost))
    with pytest.raises(ControllerLostError):
        launch.start_controller(ready)
    assert not is_held(open_storage(ready.config.folder))

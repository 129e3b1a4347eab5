"""Status and control: what is said to a run, and what is shown of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from infra.cluster.config import ClusterError
from jobs import status
from jobs.common.status_view import run_view
from jobs.control import decision_of, tracking_uri
from pipeline.control.controller import StageController
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import ControllerClient
from pipeline.run.summary import decision_table
from pipeline.schedule.decisions import Checkpoint, ExtendStage, NextStage, Pause, Resume, SetField, Stop, records_of
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from tests.support.groups import FakeGroup, ask, no_group, plan_of, stage

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("said", "decision"),
    [
        (["advance"], NextStage()),
        (["extend", "2.5"], ExtendStage(epochs=2.5)),
        (["checkpoint"], Checkpoint()),
        (["pause"], Pause()),
        (["resume"], Resume()),
        (["stop"], Stop()),
        (["set", "lr-scale", "0.5"], SetField(name="lr_scale", value=0.5)),
    ],
)
def test_a_command_is_a_decision(said: list[str], decision: object) -> None:
    assert decision_of(said[0], said[1:]) == decision


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["jump"], "no command is named 'jump': there are advance,"),
        (["extend"], "usage: jobs.control RUN extend EPOCHS"),
        (["extend", "soon"], "'soon' is not a number"),
        (["extend", "-1"], "extend -1: give"),
        (["set", "seed", "1"], "set seed: only lr_scale, patience, log_every"),
        (["set", "patience"], "FIELD: lr_scale, patience, log_every"),
        (["stop", "now"], "usage: jobs.control RUN stop"),
    ],
)
def test_a_wrong_command_is_one_line(said: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decision_of(said[0], said[1:])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "usage: jobs.control RUN tracking URI"),
        (["mlflow.db"], r"tracking mlflow\.db: expected the address of an MLflow server"),
        (["http://ann:hunter2@127.0.0.1:9"], "the address holds a user or password"),
        (["http://127.0.0.1:9"], r"tracking\.uri is http://127\.0\.0\.1:9: no answer; start the MLflow server"),
    ],
)
def test_an_address_that_no_record_can_go_on_at_is_one_line(said: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tracking_uri(said)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


def test_without_runs_json_is_an_empty_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "visit", lambda address, look: {"127.0.0.1:1": []})
    for argv, said in ((["--json"], "[]"), (["gone", "--json"], "[]"), (["gone"], "no active run is named 'gone'")):
        assert status.main(argv) == 1
        assert capsys.readouterr().out == f"{said}\n"
    monkeypatch.undo()
    monkeypatch.setattr("infra.cluster.ray_private.local_cluster_addresses", list)
    assert status.main(["--json"]) == 1
    assert capsys.readouterr().out == "[]\n"
    with pytest.raises(ClusterError, match="no Ray cluster runs on this machine"):
        status.main([])


def shown(status: RunStatus) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(run_view(status))
    return out.getvalue()


def test_the_view_shows_where_a_run_is_before_while_and_after_it_trains() -> None:
    controller = StageController(plan_of(stage(), stage(), name="fake"), no_group)
    assert "fake: starting" in shown(controller.status())
    spans = (StageSpan(0, stage(2), 0, 120), StageSpan(1, stage((1, 4), image_size=64), 120, 240))  # type: ignore[arg-type]
    controller.join(0, "a")
    controller.join(1, "b")
    controller.saved("runs/fake/checkpoints/24", 24)
    metrics = {"train/images_per_s": 24.0, "train/loss": 1.25, "train/data_wait_share": 0.25, "val/accuracy": 0.5}
    result = {"samples": 48, "train_s": 2.0, "eval_s": 0.0, "val/accuracy": 0.5}
    now = Progress(
        cursor=48, stage=0, spans=spans, samples_per_epoch=120, num_workers=2, metrics=metrics,
        stage_results=(result,), settings={"lr_scale": 0.5},
    )  # fmt: skip
    controller.decide(now)
    ask(NextStage(reason="looks flat"))(controller)
    text = shown(controller.status())
    for part in (
        "fake: training, stage 1 of 2, epoch 0.4 of 2.0, cursor 48 of 240, 13s left",
        "24 images/s total, 12 per worker | 2 workers on 2 nodes | 25% of the time waiting for data",
        "checkpoint at cursor 24, 0s old | ",
        "learning rate x 0.5",
        "requested: next stage (asked by ann@here)",
        "1-4",
    ):
        assert part in text
    controller.failed("shard 3 is damaged")
    assert "error: shard 3 is damaged" in shown(controller.status())


def test_the_view_and_the_table_show_what_was_decided() -> None:
    group = FakeGroup({48: ask(NextStage(reason="looks flat"))})
    group.run((stage(), stage()), name="fake")
    text = shown(group.controller.status())
    assert "cursor 48, stage 1: next stage, asked by ann@here: looks flat" in text
    assert "fake: finished" in text
    table = json.loads(decision_table(records_of(group.saved.decisions)))
    assert table["columns"] == ["time", "cursor", "stage", "decision", "asked by", "reason"]
    assert table["data"][0][1:] == [48, 1, "next stage", "ann@here", "looks flat"]


def test_the_view_has_a_column_for_each_thing_that_a_stage_changes_and_no_other() -> None:
    plain, other = FakeGroup(), FakeGroup()
    plain.run((stage(), stage()))
    seldom = ("CutMix", "depth", "crop", "LR x")
    assert not any(name in shown(plain.controller.status()) for name in seldom)
    other.run((stage(), stage(cutmix_alpha=0.25, stochastic_depth=0.15, crop_area=(0.35, 1.0), lr_factor=1.414)))
    head, _, first, second = shown(other.controller.status()).splitlines()[2:6]
    assert all(name in head for name in seldom)
    assert second.strip("> ").split()[4:10] == ["0", "0.25", "0.15", "0.35-1", "1.41", "24"]
    assert first.strip("> ").split()[4:8] == ["0", "0", "1", "24"]  # depth and crop are left to the recipe


@pytest.fixture
def waiting_run(ray_cluster: None) -> Iterator[tuple[str, ControllerClient]]:
    """A run's controller as an actor on the tests' cluster, and the cluster's address."""
    import ray

    from infra.cluster.connect import NAMESPACE

    options = {"name": "run-waiting", "namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": 4}
    actor = ray.remote(StageController).options(**options).remote(plan_of(stage(), stage(), name="waiting"), _never)
    controller = ControllerClient(actor)
    controller.join(0, "node", "", 1)
    yield ray.get_runtime_context().gcs_address, controller
    ray.kill(actor)


def _never(segment: object) -> None:
    threading.Event().wait()


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_run_is_found_and_told_from_another_process(waiting_run: tuple[str, ControllerClient]) -> None:
    address, controller = waiting_run
    told = job("jobs.control", "waiting", "set", "lr-scale", "0.5", "--address", address, "--reason", "too noisy")
    assert told.returncode == 0, told.stderr
    assert "set lr_scale to 0.5: at the next decision point" in told.stdout
    seen = job("jobs.status", "--json", "--address", address)
    assert seen.returncode == 0, seen.stderr
    status = next(one for one in json.loads(seen.stdout) if one["name"] == "waiting")
    assert status["phase"] == "training"
    assert "set lr_scale to 0.5 (asked by " in status["pending"][0]
    now = Progress(cursor=24, stage=0, spans=(StageSpan(0, stage(), 0, 120),), samples_per_epoch=120, num_workers=1)
    (decision,) = controller.decide(now).decisions
    assert isinstance(decision, SetField)
    assert (decision.value, decision.reason) == (0.5, "too noisy")
    unknown = job("jobs.control", "nobody", "stop", "--address", address)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: no active run is named 'nobody': there are waiting")

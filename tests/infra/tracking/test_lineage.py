"""Datasets and checkpoints in MLflow: each once, whatever was lost or begun before, and gone with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.ended import send_unsent
from infra.tracking.errors import TrackingError
from infra.tracking.lineage import URI_TAG, CheckpointModel, model_name
from infra.tracking.mlflow_run import make_client
from infra.tracking.ranking import best_checkpoint
from infra.tracking.tracker import Tracker
from tests.support.lineage import TRAIN, VAL, checkpoint


class Calls:
    """Counts the calls to MLflow, and lets the one at a number fail after, or before, it has done its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow import MlflowClient

        self.made: list[str] = []
        self.fails_at, self.after = -1, True
        for name in ("create_logged_model", "log_outputs", "log_batch", "finalize_logged_model", "delete_logged_model",
                     "search_logged_models", "log_inputs", "get_run"):  # fmt: skip
            monkeypatch.setattr(MlflowClient, name, self._counted(name, getattr(MlflowClient, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.made.append(name)
            fails = len(self.made) - 1 == self.fails_at
            if fails and not self.after:
                raise ConnectionError("lost on the way there")
            answer = call(*args, **kwargs)
            if fails:
                raise ConnectionError("lost on the way back")
            return answer

        return counted


@pytest.fixture
def config(sqlite_uri: str) -> TrackingConfig:
    return TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.02)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.tracking.delivery.PAUSE_S", 0.02)
    monkeypatch.setattr("infra.tracking.tracker.SETTLE_S", 0.0)


def models_of(config: TrackingConfig) -> list[Any]:
    client = make_client(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    return list(client.search_logged_models([experiment.experiment_id]))


def record(config: TrackingConfig, folder: Path, *lists: list[CheckpointModel], status: str = "") -> Tracker:
    """Record lists of kept checkpoints one after the other, as one process of the run."""
    tracker = Tracker(config, "solar", storage=open_storage(folder))
    tracker.log_inputs([TRAIN, VAL])
    for models in lists:
        for model in models:
            values = {name: value for name, value in model.metrics.items() if value == value}
            tracker.log_metrics({"train/loss": 1.0, **values}, model.step)
        tracker.log_checkpoints(models)
        assert tracker.flush(60), tracker.problem
    if status:
        assert tracker.close(status, 60)
    else:
        tracker.persist()
        tracker.abandon()
    return tracker


def test_a_checkpoint_is_a_model_with_its_values_and_its_data(config: TrackingConfig, tmp_path: Path) -> None:
    tracker = record(config, tmp_path, [checkpoint(24, 0.5)], status="FINISHED")
    (model,) = models_of(config)
    assert (model.name, str(model.status), model.source_run_id) == ("solar-24", "READY", tracker.run_id)
    assert model.params == {"stage": "1", "image_size": "128"}
    assert model.tags[URI_TAG] == "s3://runs/solar/checkpoints/24-e1"
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.step) == ("val/accuracy", 0.5, 24)
    assert (metric.dataset_name, metric.dataset_digest) == ("elpv/val", "b" * 32)
    client = make_client(config.uri)
    run = client.get_run(tracker.run_id)
    assert [(one.model_id, one.step) for one in run.outputs.model_outputs] == [(model.model_id, 24)]
    assert len(client.get_metric_history(tracker.run_id, "val/accuracy")) == 1  # not doubled by the model's
    tags = {one.dataset.name: one.tags[0].value for one in run.inputs.dataset_inputs}
    assert [*tags] == [TRAIN.name, VAL.name]  # the runs table shows the first
    assert tags == {"elpv/train": "training", "elpv/val": "validation"}
    found = client.search_runs([run.info.experiment_id], "datasets.name = 'elpv/train' and datasets.digest LIKE 'aa%'")
    assert [one.info.run_id for one in found] == [tracker.run_id]


def test_a_checkpoint_that_was_measured_again_in_another_rounding_doubles_no_point(
    config: TrackingConfig, tmp_path: Path
) -> None:
    # A group of another size went on from an earlier checkpoint and evaluated the step again.
    first, again = checkpoint(24, 0.5), replace(checkpoint(24, 0.5000001), uri="s3://runs/solar/checkpoints/24-e2")
    record(config, tmp_path, [first])
    tracker = record(config, tmp_path, [again], status="FINISHED")
    (point,) = make_client(config.uri).get_metric_history(tracker.run_id, "val/accuracy")
    (model,) = models_of(config)
    assert (point.value, [metric.value for metric in model.metrics]) == (0.5, [0.5])


def test_models_go_with_their_checkpoints_and_come_once_over_restarts(config: TrackingConfig, tmp_path: Path) -> None:
    first, second, third = checkpoint(24, 0.5), checkpoint(48, 0.7), checkpoint(72)
    record(config, tmp_path, [first], [first, second])
    tracker = record(config, tmp_path, [first, second], [second, third], status="FINISHED")
    assert sorted(model.name for model in models_of(config)) == ["solar-48", "solar-72"]
    run = make_client(config.uri).get_run(tracker.run_id)
    assert len(run.inputs.dataset_inputs) == 2


def test_a_checkpoint_costs_five_calls_and_a_deleted_one_one(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(config, "solar", storage=open_storage(tmp_path))
    tracker.log_checkpoints([checkpoint(24)])
    assert tracker.flush(60)
    calls = Calls(monkeypatch)
    tracker.log_metrics({"val/accuracy": 0.5}, 48)
    tracker.log_checkpoints([checkpoint(48, 0.5)])
    assert tracker.flush(60)
    assert tracker.close("FINISHED", 60)
    of_models = calls.made[calls.made.index("delete_logged_model") :]
    assert of_models == ["delete_logged_model", "create_logged_model", "get_run", "log_batch", "log_outputs",
                         "finalize_logged_model"]  # fmt: skip


@pytest.mark.parametrize("after", [True, False])
def test_a_call_that_is_lost_doubles_and_loses_nothing(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Each call of a checkpoint's in turn: the answer to it is lost, or the call itself."""
    record(config, tmp_path, [checkpoint(24, 0.5)])
    calls = Calls(monkeypatch)
    kept = [checkpoint(24, 0.5)]
    for number in range(12):
        calls.made.clear()
        calls.fails_at, calls.after = number, after
        kept = [kept[-1], checkpoint(48 + number, 0.01 * number)]
        record(config, tmp_path, kept)
        calls.fails_at = -1
        assert sorted(model.name for model in models_of(config)) == sorted(model.name for model in kept), number
    tracker = record(config, tmp_path, kept, status="FINISHED")
    run = make_client(config.uri).get_run(tracker.run_id)
    outputs = [one.model_id for one in run.outputs.model_outputs]
    assert len(outputs) == len(set(outputs))
    history = make_client(config.uri).get_metric_history(tracker.run_id, "val/accuracy")
    assert [one.step for one in history] == [24, *range(48, 60)]


def test_what_a_dead_server_missed_is_sent_from_the_spool(config: TrackingConfig, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    tracker = Tracker(replace(config, uri="http://127.0.0.1:9"), "solar", storage=storage)
    tracker.log_inputs([TRAIN, VAL])
    tracker.log_metrics({"val/accuracy": 0.5}, 24)
    tracker.log_checkpoints([checkpoint(24, 0.5)])
    assert not tracker.close("FINISHED", 0.2)
    assert send_unsent(config, "solar", storage)
    (model,) = models_of(config)
    assert model.metrics[0].value == 0.5
    assert len(make_client(config.uri).get_run(model.source_run_id).inputs.dataset_inputs) == 2


def test_a_server_that_knows_no_models_gets_the_rest(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def old_server(*args: Any, **kwargs: Any) -> Any:
        raise MlflowException("API request to endpoint /api/2.0/mlflow/logged-models failed with error code 404 != 200")

    monkeypatch.setattr(MlflowClient, "search_logged_models", old_server)
    tracker = record(config, tmp_path, [checkpoint(24, 0.5)], [checkpoint(48, 0.5)], status="FINISHED")
    run = make_client(config.uri).get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["val/accuracy"]) == ("FINISHED", 0.5)
    assert sum("refuses one of the models" in line for line in caplog.messages) == 1


def test_other_models_of_the_run_are_left_alone(config: TrackingConfig, tmp_path: Path) -> None:
    tracker = record(config, tmp_path, [checkpoint(24)])
    client = make_client(config.uri)
    experiment = client.get_run(tracker.run_id).info.experiment_id
    client.create_logged_model(experiment, "exported", tracker.run_id)
    record(config, tmp_path, [checkpoint(48)], status="FINISHED")
    assert sorted(model.name for model in models_of(config)) == ["exported", "solar-48"]


def test_the_best_checkpoint_of_an_experiment_is_found(config: TrackingConfig, tmp_path: Path) -> None:
    record(config, tmp_path / "a", [checkpoint(24, 0.5), checkpoint(48)], status="FINISHED")
    other = [checkpoint(24, 0.7, run="lunar"), checkpoint(48, 0.6, run="lunar")]
    record(config, tmp_path / "b", other, status="FINISHED")
    with pytest.raises(TrackingError, match="judges its checkpoints by no metric: name one with --metric"):
        best_checkpoint(config)
    best = best_checkpoint(config, "val/accuracy")
    assert (best.uri, best.metric, best.value) == (other[0].uri, "val/accuracy", 0.7)
    judged = [replace(checkpoint(24, 0.1, run="dim"), tags={"best_metric": "val/accuracy", "best_is": "lowest"})]
    record(config, tmp_path / "c", judged, status="FINISHED")
    assert best_checkpoint(config).uri == judged[0].uri
    with pytest.raises(TrackingError, match=r"metric is 'val/f1': no checkpoint of .* has it; there are: val/accuracy"):
        best_checkpoint(config, "val/f1")
    with pytest.raises(TrackingError, match=r"the experiment 'other' at .* doesn't exist"):
        best_checkpoint(replace(config, experiment="other"), "val/f1")


@pytest.mark.parametrize("name", ["a/b:c.d%e\"f'g", "x" * 600, ""])
def test_odd_names_are_taken(config: TrackingConfig, tmp_path: Path, name: str) -> None:
    record(config, tmp_path, [replace(checkpoint(24), name=model_name(name))], status="FINISHED")
    assert len(models_of(config)) == 1

"""Keys and passwords get out nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.config import DataConfig
from datasets.files import s3
from infra.storage.base import Storage
from infra.storage.open import open_storage
from infra.storage.s3 import S3Storage
from infra.tracking.config import TrackingConfig, prepare
from infra.tracking.mlflow_run import make_client
from infra.tracking.tracker import Tracker
from model.config import ModelConfig
from pipeline.checkpoint.format import write_checkpoint
from pipeline.checkpoint.resume import planned_start
from pipeline.config import TrainConfig
from pipeline.run.provenance import recorded_config
from pipeline.schedule.stages import TrainingStage
from pipeline.task_config import ClassificationConfig
from tests.support.snapshots import snapshot

SECRETS = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIexample", "hunter2", "session-token-77")


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and passwords in every place where a user may have them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS[3])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRETS[2]}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS[2])


@pytest.mark.usefixtures("secrets")
def test_no_secret_is_in_a_checkpoint_a_record_a_log_or_an_error(
    tmp_path: Path, sqlite_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.run.provenance import flat_values
    from pipeline.run.summary import describe

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("infra.storage.s3.CHECK_PATIENCE_S", 0.1)
    config = TrainConfig(
        name="x",
        storage=str(tmp_path / "runs"),
        stages=(TrainingStage(image_size=32, epochs=1, batch_size=24),),
        data=DataConfig(train="s3://bucket/train", val="s3://bucket/val"),
        model=ModelConfig(name="efficientnet_v2_tiny"),
        task=ClassificationConfig(),
        tracking=TrackingConfig(uri=f"http://me:{SECRETS[2]}@127.0.0.1:9"),
    )
    storage = open_storage(f"{config.storage}/x")
    made = snapshot(24)
    write_checkpoint(storage, replace(made, metadata=replace(made.metadata, config=recorded_config(config))))
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False), "x", storage=storage)
    tracker.log_params(flat_values(recorded_config(config)))
    tracker.set_description(describe(config))
    tracker.set_tags({"checkpoint": config.tracking.uri})
    assert tracker.close("FINISHED", 30)
    assert tracker.run_id
    data = make_client(sqlite_uri).get_run(tracker.run_id).data
    errors = [_error(open_storage("s3://bucket/x").check_writable), _error(lambda: prepare(config.tracking))]
    errors += [
        _error(lambda: s3.read("s3://bucket/train/a.tar", length=9, patience_s=0.1)),
        _error(lambda: planned_start(config, _s3())),
    ]
    written = [path.read_bytes().decode("latin1") for path in storage_files(tmp_path) if path.suffix != ".db"]
    texts = [caplog.text, str(data.params), str(data.tags), *errors, *written, repr(storage), repr(_s3())]
    for secret in SECRETS:
        assert [text[:300] for text in texts if secret in text] == []
    assert all("\n" not in error for error in errors)


def _s3() -> Storage:
    return S3Storage("bucket", "x", patience_s=0.1)


def storage_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        call()
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    return " <- ".join(chain)

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infra.tracking.config import TrackingConfig
from infra.tracking.errors import TrackingAwayError, TrackingError
from infra.tracking.prepare_process import prepared_meanwhile


@pytest.fixture(autouse=True)
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a driver, which has not imported it."""
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)


def test_mlflow_is_ready_when_the_rest_is_done(tmp_path: Path) -> None:
    with prepared_meanwhile(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="apart")):
        pass
    assert (tmp_path / "mlflow.db").is_file()


def test_what_is_wrong_with_mlflow_is_the_same_line_without_secrets() -> None:
    said = r"^tracking\.uri is http://127\.0\.0\.1:9: no answer; start the MLflow server, or correct the URI$"
    with (
        pytest.raises(TrackingAwayError, match=said),
        prepared_meanwhile(TrackingConfig(uri="http://user:secret@127.0.0.1:9")),
    ):
        pass


def test_an_error_of_the_rest_is_the_one_that_counts(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no cluster"),
        prepared_meanwhile(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")),
    ):
        raise RuntimeError("no cluster")


def test_what_is_not_cured_by_waiting_keeps_its_class_too(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    with (
        pytest.raises(TrackingError, match="not a database") as caught,
        prepared_meanwhile(TrackingConfig(uri=f"sqlite:///{tmp_path}/text.db")),
    ):
        pass
    assert not isinstance(caught.value, TrackingAwayError)

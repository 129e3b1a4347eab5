"""One run in MLflow: found or made, and written to by calls that may be repeated without harm.

MLflow is imported when a function is called, not with the module: that takes seconds.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.redact import one_line, redacted
from infra.tracking.charts import VIEW_TAG, view_text
from infra.tracking.errors import TrackingError, error_code
from infra.tracking.outbox import File, Row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

MAX_VALUES_PER_CALL = 1000
MAX_LABELS_PER_CALL = 100
MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 8000

NAME_TAG = "crescendo.run"
KEY_TAG = "crescendo.run_key"
FINGERPRINT_TAG = "crescendo.fingerprint"
"""By which a comparison finds a run that was trained already."""
TABLES_TAG = "mlflow.loggedArtifacts"
"""By which MLflow's page knows the artifacts that are tables."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Has the UI show a new experiment as model training; without it, it may open as one of language models."""

REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Error codes of what is wrong with a value: to send it again doesn't help."""

_ENVIRONMENT = {
    # Our own thread tries again; a call that retries for minutes inside would hold up flush and close.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowRun:
    """A run that is there. Every method raises what MLflow raises when the server does not take the call."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.client = client
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        # Not by the client: MLflow keeps one artifact store a run and process, with the address of its first server.
        self._artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)

    def sent_steps(self) -> dict[str, int]:
        """Return the last step of each metric."""
        return {metric.key: metric.step for metric in self.client.get_run(self.run_id).data.to_proto().metrics}

    def send_rows(self, rows: Iterable[Row]) -> None:
        """Send metrics of valid names, in one transaction per 1,000 values.

        Sent again after an answer was lost, rows are not doubled: in MLflow's SQL store key, time, step and value are
        the primary key, and `log_batch` skips what is there (mlflow/store/tracking/sqlalchemy_store.py).
        """
        from mlflow.entities import Metric

        metrics = [Metric(key, value, row.time_ms, row.step) for row in rows for key, value in row.values.items()]
        for chunk in _chunks(metrics, MAX_VALUES_PER_CALL):
            self.client.log_batch(self.run_id, metrics=chunk)

    def send_params(self, params: Mapping[str, str]) -> dict[str, str]:
        """Send params; return those that the server refuses, and why.

        MLflow never changes one: a new value of an old one becomes the tag `changed.NAME`, as does the old one again.
        """
        from mlflow.entities import Param

        texts = {valid_name(name): value[:MAX_PARAM] for name, value in params.items()}
        new = {name: text for name, text in texts.items() if name not in self._params}
        refused = dict[str, str]()
        for chunk in _chunks([Param(name, text) for name, text in new.items()], MAX_LABELS_PER_CALL):
            refused |= _refused(chunk, lambda some: self.client.log_batch(self.run_id, params=some))
        self._params |= {name: text for name, text in new.items() if name not in refused}
        changed = {
            f"changed.{name}": text
            for name, text in texts.items()
            if text != self._params.get(name, text) or f"changed.{name}" in self._tags
        }
        return refused | self.send_tags(changed)

    def send_tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Send tags; return those that the server refuses, and why. Tables of earlier processes stay tables."""
        from mlflow.entities import RunTag

        known = self._tags.get(TABLES_TAG)
        texts = {name: _joined(known, text) if name == TABLES_TAG and known else text for name, text in tags.items()}
        entities = [RunTag(name[:MAX_NAME], text[:MAX_TAG]) for name, text in texts.items()]
        refused = dict[str, str]()
        for chunk in _chunks(entities, MAX_LABELS_PER_CALL):
            refused |= _refused(chunk, lambda some: self.client.log_batch(self.run_id, tags=some))
        return refused

    def send_file(self, file: File) -> None:
        """Send an artifact, in place of one of the same path."""
        folder, name = posixpath.split(file.path)
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary, name)
            local.write_bytes(file.content)
            self._artifacts.log_artifact(str(local), folder or None)

    def finish(self, status: str) -> None:
        """Set the end time and `FINISHED`, `FAILED` or `KILLED`."""
        self.client.set_terminated(self.run_id, status)


def open_run(
    uri: str, experiment_id: str, *, name: str, key: str, run_id: str | None, parent_run_id: str = ""
) -> MlflowRun:
    """Find the run `run_id`, else the one that carries `key`, else make one. A finished one continues running.

    A run that was made by a call whose answer was lost is found by its key.
    """
    client = make_client(uri)
    run = _run_by_id(client, run_id) or run_by_key(client, experiment_id, key)
    if run is None:
        tags = {NAME_TAG: name, KEY_TAG: key, "mlflow.user": user_name(), "mlflow.source.name": "Crescendo"}
        if parent_run_id:
            tags["mlflow.parentRunId"] = parent_run_id
        run = client.create_run(experiment_id, tags=tags, run_name=name)
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    return MlflowRun(client, run)


def open_experiment(uri: str, name: str, artifact_location: str | None) -> str:
    """Return the experiment's id, and make it if there is none; give it the view of the first charts if it has none.

    A SQLite file gets its tables here, which takes seconds; a lock lets one process do it.

    Raises:
        TrackingError: the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    with _sqlite_lock(uri):
        client = make_client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                tags = EXPERIMENT_TAGS | {VIEW_TAG: view_text(_now_ms())}
                return str(client.create_experiment(name, artifact_location, tags=tags))
            except MlflowException as error:
                found = client.get_experiment_by_name(name)  # another process made it meanwhile
                if found is None:
                    raise error
    if found.lifecycle_stage != "active":
        raise TrackingError(f"tracking.experiment {name!r} was deleted in MLflow; restore it or choose another name")
    if VIEW_TAG not in found.tags:
        _offer_view(client, found.experiment_id)
    return str(found.experiment_id)


def _offer_view(client: MlflowClient, experiment_id: str) -> None:
    """Give an experiment of others, or of an older version, the view; a server that doesn't take it is left alone."""
    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG, view_text(_now_ms()))
    except Exception as error:  # what is recorded matters more
        log.debug("no view of the charts: %s", one_line(error))


def _now_ms() -> int:
    return int(time.time() * 1000)


def make_client(uri: str) -> MlflowClient:
    """Return a client of `uri`, with this package's time limits unless the environment sets others."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def log_below(uri: str, parent_run_id: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Give the runs below a parent final metrics, by the runs' names. Runs that have ended stay ended.

    A metric that a run has already is left as it is. Raises what MLflow raises.
    """
    from mlflow.entities import Metric

    client, now = make_client(uri), _now_ms()
    for run in runs_below(client, parent_run_id):
        values = {valid_name(name): value for name, value in metrics.get(run.data.tags.get(NAME_TAG), {}).items()}
        new = [Metric(name, value, now, 0) for name, value in values.items() if name not in run.data.metrics]
        if new:
            client.log_batch(run.info.run_id, metrics=new)


def runs_below(client: MlflowClient, parent_run_id: str, *conditions: str) -> Iterator[Run]:
    """Yield the runs below a parent that meet MLflow's search conditions, page by page. Raises what MLflow raises."""
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    wanted = " and ".join((f"tags.`mlflow.parentRunId` = '{parent_run_id}'", *conditions))
    token = None
    while True:
        page = client.search_runs([experiment_id], wanted, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def page_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page on a server, in the view for model training.

    Without it, MLflow 3.17 opens in its view for language models until a user has chosen the other one.
    """
    return f"{redacted(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


# Room for 20 metrics of each of thousands of nodes: with fewer, the names in turn would evict one another.
@lru_cache(maxsize=100_000)
def valid_name(name: str) -> str:
    """Return the name of a metric or param with what MLflow does not allow in it replaced."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name)).lstrip("/.")[:MAX_NAME] or "_"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a `sqlite:` URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


@contextmanager
def _sqlite_lock(uri: str) -> Iterator[None]:
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def user_name() -> str:
    """Return who runs this process, as runs and their tags name them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have it
        return f"uid {os.getuid()}"


def _run_by_id(client: MlflowClient, run_id: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def run_by_key(client: MlflowClient, experiment_id: str, key: str) -> Any:
    """Return the run of an experiment that carries the key, or None."""
    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0] if found else None


def runs_by_tag(uri: str, experiment: str, tag: str, value: str) -> list[dict[str, str]]:
    """Return the params of the finished runs of an experiment that carry this tag, the newest first.

    Raises what MLflow raises.
    """
    client = make_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    wanted = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([found.experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=20)
    return [dict(run.data.params) for run in runs]


def _refused(labels: list[Any], send: Callable[[list[Any]], None]) -> dict[str, str]:
    """Send params or tags; return the names of those that the server refuses, and why.

    A batch that holds one such is refused as a whole: its halves are sent by themselves, down to the one.
    """
    try:
        send(labels)
    except Exception as error:
        if error_code(error) not in REFUSALS:
            raise
        if len(labels) == 1:
            return {labels[0].key: one_line(error)}
        middle = len(labels) // 2
        return _refused(labels[:middle], send) | _refused(labels[middle:], send)
    return {}


def _joined(known: str, text: str) -> str:
    """Return the tables in two values of `TABLES_TAG`; what is no list of them is replaced."""
    try:
        before = json.loads(known)
    except ValueError:
        return text
    mine = json.loads(text)
    return json.dumps([*(table for table in before if table not in mine), *mine]) if isinstance(before, list) else text


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

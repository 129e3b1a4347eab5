"""What a run learned from, and what came of it, as entities of MLflow: its datasets, and its kept checkpoints.

Both are sent as a whole and compared with what MLflow has, so they may be sent again, by this process or the next.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from infra.redact import redacted_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from infra.tracking.mlflow_run import MlflowRun

URI_TAG = "checkpoint"
"""By which a model of MLflow's is known to be a checkpoint, and which one."""
METRIC_TAG, BEST_TAG = "best_metric", "best_is"
"""By which metric checkpoints of the run are judged, and whether the `highest` or the `lowest` is the best."""
CONTEXT_TAG = "mlflow.data.context"
MAX_DATASET_NAME = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Data that a run reads."""

    name: str
    digest: str
    """What is equal for the same samples; at most 36 characters."""
    source: str
    """Folder, or s3://BUCKET/PREFIX."""
    context: str
    """What for: `training` or `validation`."""
    columns: Mapping[str, str]
    """Name and type (of MLflow's `DataType`) of what a sample has."""
    profile: Mapping[str, int | str]
    """Counts."""

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(redacted_values(asdict(self)))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointModel:
    """A kept checkpoint, as an external model: MLflow gets no weights."""

    name: str
    uri: str
    """Of the checkpoint: never the same again, even where a cursor is trained again."""
    step: int
    """The cursor."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Those that were measured at this step; MLflow shows the values that the run has there."""
    datasets: Sequence[tuple[str, str]] = field(default=())
    """Name and digest of what they were measured on."""


def model_name(text: str) -> str:
    """Return a name with what MLflow does not allow in a model's replaced."""
    return re.sub(r"[/:.%\"']", "-", text)[:MAX_DATASET_NAME] or "-"


def send_datasets(run: MlflowRun, texts: Mapping[str, str]) -> None:
    """Make datasets (`Dataset.to_json`) inputs of a run. MLflow leaves out those that it has, by name and digest."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for text in texts.values():
        facts = json.loads(text)
        source = facts["source"]
        entity = Entity(
            name=facts["name"][:MAX_DATASET_NAME],
            digest=facts["digest"],
            source_type="s3" if source.startswith("s3://") else "local",
            source=json.dumps({"uri": source}),
            schema=json.dumps({"mlflow_colspec": [_column(*pair) for pair in facts["columns"].items()]}),
            profile=json.dumps(facts["profile"]),
        )
        inputs.append(DatasetInput(entity, [InputTag(CONTEXT_TAG, facts["context"])]))
    if inputs:
        run.client.log_inputs(run.run_id, inputs)


def _column(name: str, kind: str) -> dict[str, str | bool]:
    return {"name": name, "type": kind, "required": True}


class ModelSync:
    """Makes the models of a run in MLflow those of its kept checkpoints. Only for the thread that sends.

    A model is made ready last, so one that a dead process has only begun is found, and completed. In the steady state
    a checkpoint costs five calls: create, read the run's values, send them with the model's id, make it the run's
    output, make it ready; and one more for the checkpoint that was deleted.
    """

    def __init__(self) -> None:
        self._run_id = ""
        self._ready: dict[str, str] = {}
        """URI -> id of the models that MLflow is known to have whole."""

    def send(self, run: MlflowRun, text: str) -> None:
        """Have MLflow know these checkpoints (`models_json`) and no others of this run."""
        wanted = {row["uri"]: row for row in json.loads(text)}
        known, self._run_id = self._ready if self._run_id == run.run_id else None, ""  # what fails is looked up anew
        begun = dict[str, str]()
        if known is None:
            known, begun = _find(run.client, run.experiment_id, run.run_id)
        for uri in [uri for uri in known if uri not in wanted]:
            _delete(run.client, known.pop(uri))
        for uri, row in wanted.items():
            if uri not in known:
                known[uri] = _complete(run, row, begun.pop(uri, ""))
        for model_id in begun.values():
            _delete(run.client, model_id)
        self._ready, self._run_id = known, run.run_id


def models_json(models: Sequence[CheckpointModel]) -> str:
    """Return checkpoints as text."""
    return json.dumps(redacted_values([asdict(model) for model in models]))


def _find(client: MlflowClient, experiment_id: str, run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the models of a run's checkpoints, ready ones and others, as URI -> id; of two for one, one is deleted."""
    from mlflow.entities import LoggedModelStatus

    ready, begun = dict[str, str](), dict[str, str]()
    token = None
    while True:
        wanted = f"source_run_id = '{run_id}' AND tags.`{URI_TAG}` != ''"
        page = client.search_logged_models([experiment_id], filter_string=wanted, page_token=token)
        for model in page:
            uri = model.tags[URI_TAG]
            if uri in ready or uri in begun:
                _delete(client, model.model_id)
            else:
                (ready if model.status == LoggedModelStatus.READY else begun)[uri] = model.model_id
        token = page.token
        if not token:
            return ready, begun


def _complete(run: MlflowRun, row: dict[str, Any], model_id: str) -> str:
    """Make a model, or what a dead process left of it, whole; return its id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = run.client
    if not model_id:
        tags = {"mlflow.model.isExternal": "true", **row["tags"], URI_TAG: row["uri"]}
        made = client.create_logged_model(
            run.experiment_id, row["name"], run.run_id, tags, row["params"], model_type="checkpoint"
        )
        model_id = made.model_id
    found = client.get_run(run.run_id)
    if metrics := _measured(run, found, row, model_id):
        client.log_batch(run.run_id, metrics=metrics)
    if model_id not in [one.model_id for one in (found.outputs.model_outputs if found.outputs else [])]:
        client.log_outputs(run.run_id, [LoggedModelOutput(model_id, row["step"])])
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def _measured(run: MlflowRun, found: Run, row: dict[str, Any], model_id: str) -> list[Metric]:
    """Return a checkpoint's values with the model's id and the data's.

    They are the points that the run has at this step, with its times and its values: MLflow takes them for the same
    points only then. What the checkpoint's own process measured may differ from them in rounding, where another number
    of workers had measured this step before.
    """
    from mlflow.entities import Metric

    last = {metric.key: metric for metric in found.data.to_proto().metrics}
    points = []
    for name in row["metrics"]:
        point = last.get(name)
        if point is not None and point.step != row["step"]:  # an older checkpoint, of a run that is continued
            history = run.client.get_metric_history(run.run_id, name)
            point = next((one for one in history if one.step == row["step"]), None)
        if point is not None and math.isfinite(point.value):
            points.append(point)
    # A value has one dataset; of a mixture, the first.
    name, digest = row["datasets"][0] if row["datasets"] else (None, None)
    return [
        Metric(
            *(point.key, point.value, point.timestamp, point.step),
            model_id=model_id,
            dataset_name=name,
            dataset_digest=digest,
            run_id=run.run_id,
        )
        for point in points
    ]


def _delete(client: MlflowClient, model_id: str) -> None:
    from infra.tracking.errors import error_code

    try:
        client.delete_logged_model(model_id)
    except Exception as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":  # deleted by hand
            raise

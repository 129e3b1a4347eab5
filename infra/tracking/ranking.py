"""The best checkpoint over all runs of an experiment, as MLflow knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.redact import redacted
from infra.tracking.config import TrackingConfig, check, explained
from infra.tracking.errors import TrackingError
from infra.tracking.lineage import BEST_TAG, METRIC_TAG, URI_TAG
from infra.tracking.mlflow_run import make_client, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_MOST_LOOKED_AT = 100
CHECKPOINTS = f"tags.`{URI_TAG}` != ''"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedCheckpoint:
    """The best of them that is still there."""

    uri: str
    metric: str
    value: float
    gone: tuple[str, ...] = ()
    """URIs of better ones that are not, the best first."""


def best_checkpoint(
    config: TrackingConfig, metric: str = "", *, is_there: Callable[[str], bool] = lambda uri: True
) -> RankedCheckpoint:
    """Return the kept checkpoint with the best value of a metric, over all runs of `config.experiment`.

    `is_there` says whether a checkpoint is still at its URI: a run's folder can be removed, and MLflow doesn't know it.

    Empty: the metric by which the newest run judges its checkpoints. Whether the highest is the best, a run that judges
    by this metric says; else it is the lowest of a loss or an error, and the highest of others.

    Raises:
        TrackingError: no such experiment, or none of its checkpoints has the metric; or MLflow can't be read.
    """
    path = sqlite_path(config.uri)
    if path is not None and not path.is_file():
        raise TrackingError(f"{path}: there is no such file: name the MLflow server with --tracking-uri")
    check(config)
    try:
        return _best(config, metric, is_there)
    except Exception as error:
        raise explained(config, error) from None


def _best(config: TrackingConfig, metric: str, is_there: Callable[[str], bool]) -> RankedCheckpoint:
    client = make_client(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    where = f"the experiment {config.experiment!r} at {redacted(config.uri)}"
    if experiment is None:
        raise TrackingError(f"{where} doesn't exist: name the MLflow server that has it with --tracking-uri")
    newest = _search(client, experiment.experiment_id, "creation_timestamp", 1)
    if not newest:
        raise TrackingError(f"{where} has no checkpoints: only runs of this version or a later one record them")
    metric = metric or newest[0].tags.get(METRIC_TAG, "")
    if not metric:
        raise TrackingError(f"{where}: its newest run judges its checkpoints by no metric: name one with --metric")
    ranked = _search(
        client,
        experiment.experiment_id,
        f"metrics.{metric}",
        _MOST_LOOKED_AT,
        ascending=_lowest(client, experiment.experiment_id, metric),
    )
    values = [{one.key: one.value for one in model.metrics or []} for model in ranked]
    if metric not in values[0]:
        there = ", ".join(sorted(values[0])[:8]) or "none"
        raise TrackingError(f"metric is {metric!r}: no checkpoint of {where} has it; there are: {there}")
    uris = [model.tags[URI_TAG] for model, known in zip(ranked, values, strict=True) if metric in known]
    for place, uri in enumerate(uris):
        if is_there(uri):
            return RankedCheckpoint(uri=uri, metric=metric, value=values[place][metric], gone=tuple(uris[:place]))
    raise TrackingError(f"{where}: none of its {len(uris)} best checkpoints is there any more, such as {uris[0]}")


def _lowest(client: MlflowClient, experiment_id: str, metric: str) -> bool:
    judged = f"tags.`{METRIC_TAG}` = '{metric}'"
    found = _search(client, experiment_id, "creation_timestamp", 1, filter_string=judged)
    if found:
        return bool(found[0].tags.get(BEST_TAG) == "lowest")
    return metric.endswith(("loss", "error"))


def _search(
    client: MlflowClient,
    experiment_id: str,
    order: str,
    count: int,
    *,
    ascending: bool = False,
    filter_string: str = CHECKPOINTS,
) -> list[LoggedModel]:
    """Return checkpoints in an order; those without the metric come last."""
    by = [{"field_name": order, "ascending": ascending}]
    return list(
        client.search_logged_models([experiment_id], filter_string=filter_string, order_by=by, max_results=count)
    )

"""A comparison's runs: what each is called, and which have been trained already."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from infra.mlflow_run import FINGERPRINT_TAG, runs_by_tag
from infra.storage import StorageError, open_storage
from infra.tracking_config import one_line
from pipeline.compare.config import CompareError, Comparison
from pipeline.compare.history import History, history_of
from pipeline.config import TrainConfig
from pipeline.decisions import records_of
from pipeline.preflight import Preflight, preflight
from pipeline.provenance import run_fingerprint
from pipeline.state import CheckpointError, newest_state

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that the comparison needs."""

    variant: str
    seed: int
    fingerprint: str
    ready: Preflight
    """Checked, with the name that it is trained under unless one is found."""


def plan_runs(comparison: Comparison, seeds: tuple[int, ...]) -> list[Planned]:
    """Check every run; return them seed by seed, so that what disturbs the machine for a while meets all variants.

    Raises:
        ValueError: a variant can't be trained: data, image sizes, batches; one line that names it.
    """
    planned: list[Planned] = []
    for seed in seeds:
        for variant, config in comparison.variants.items():
            planned.append(_planned(variant, replace(config, seed=seed), comparison.name, first=not planned))
    return planned


def _planned(variant: str, config: TrainConfig, comparison: str, *, first: bool) -> Planned:
    base = config.name
    try:
        # Under the comparison's name, which is no run's: what a run is called follows from what preflight finds.
        probe = preflight(replace(config, name=comparison), tracking_is_ready=not first)
    except ValueError as error:
        raise CompareError(f"variant {variant!r}: {error}") from error
    found_by = fingerprint_of(probe)
    name = f"{base}-{slug(variant)}-s{config.seed}-{found_by[:8]}"
    return Planned(variant, config.seed, found_by, replace(probe, config=replace(probe.config, name=name)))


def fingerprint_of(ready: Preflight) -> str:
    """Return the fingerprint of a run that may start."""
    return run_fingerprint(ready.config, train=ready.data_fingerprint, val=ready.val.fingerprint)


def slug(variant: str) -> str:
    """Return a variant's name as part of a run's."""
    return re.sub(r"[^a-z0-9.]+", "-", variant.lower()).strip("-")


def find_run(run: Planned, metric: str) -> History | None:
    """Return the history of a finished run with this fingerprint: of its own name, else one that MLflow knows of."""
    config = run.ready.config
    found = read_run(config.storage, config.name, run, metric)
    if found is not None:
        return found
    try:
        params = runs_by_tag(config.tracking.uri, config.tracking.experiment, FINGERPRINT_TAG, run.fingerprint)
    except Exception as error:  # MLflow is away: what is in storage under its own name was looked at
        log.warning("MLflow was not asked for earlier runs: %s", one_line(error))
        return None
    for one in params:
        found = read_run(one.get("storage", ""), one.get("name", ""), run, metric)
        if found is not None:
            return found
    return None


def read_run(storage_uri: str, name: str, run: Planned, metric: str) -> History | None:
    """Return the history of a run if it is finished, undisturbed and has the fingerprint."""
    if not storage_uri or not name:
        return None
    try:
        storage = open_storage(f"{storage_uri}/{name}")
        state, facts, _ = newest_state(storage)
    except (StorageError, CheckpointError):
        return None
    if state is None or len(state.stage_starts) <= len(facts["config"]["stages"]):
        return None
    steered = any(one.decision.replayed and one.decision.asked_by for one in records_of(state.decisions))
    if steered or facts["config"].get("resume_from") or _fingerprint(facts) != run.fingerprint:
        return None
    about = {
        "variant": run.variant,
        "seed": run.seed,
        "name": name,
        "where": storage.uri,
        "fingerprint": run.fingerprint,
    }
    try:
        return history_of(state, facts, metric, samples_per_epoch=run.ready.samples_per_epoch, reused=True, **about)
    except KeyError:  # by an older version, which didn't keep the times
        return None


def _fingerprint(facts: Mapping[str, object]) -> str:
    return run_fingerprint(facts["config"], train=str(facts.get("data", "")), val=str(facts.get("val", "")))

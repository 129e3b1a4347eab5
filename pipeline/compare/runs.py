"""A comparison's runs: their names, and which have been trained already."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from infra.redact import one_line
from infra.storage.base import StorageError
from infra.storage.failures import reworded
from infra.storage.open import open_storage
from infra.tracking.mlflow_run import FINGERPRINT_TAG, runs_by_tag
from pipeline.checkpoint.catalog import CheckpointError, newest_state
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.compare.config import Comparison
from pipeline.compare.history import History, history_of
from pipeline.run.preflight import Preflight, check_run, preflight
from pipeline.run.provenance import run_fingerprint
from pipeline.run.record import synced_record
from pipeline.schedule.decisions import records_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that the comparison needs."""

    variant: str
    seed: int
    fingerprint: str
    ready: Preflight
    """Checked, with the name that it is trained under unless one is found."""


def plan_runs(comparison: Comparison, seeds: tuple[int, ...], *, dry: bool = False) -> list[Planned]:
    """Check every run; return them seed by seed, so that what disturbs the machine for a while meets all variants.

    `dry`: configs and data alone are looked at, neither storage nor MLflow.

    Raises:
        ValueError: a variant can't be trained: data, image sizes, batches; one line that names it.
    """
    planned: list[Planned] = []
    for seed in seeds:
        for variant, config in comparison.variants.items():
            # Under the comparison's name, which is no run's: what a run is called follows from what its data are.
            named = replace(config, seed=seed, name=comparison.name)
            try:
                ready = check_run(named) if dry else preflight(named, prepare_tracking=not planned)
            except ValueError as error:
                raise reworded(error, f"variant {variant!r}: {error}") from error
            found_by = fingerprint_of(ready)
            run = Planned(variant, seed, found_by, ready)
            planned.append(renamed(run, f"{config.name}-{slug(variant)}-s{seed}-{found_by[:8]}"))
    return planned


def fingerprint_of(ready: Preflight) -> str:
    """Return the fingerprint of a run that may start."""
    return run_fingerprint(ready.config, train=ready.data_fingerprint, val=ready.val.fingerprint)


def slug(variant: str) -> str:
    """Return a variant's name as part of a run's."""
    return re.sub(r"[^a-z0-9.]+", "-", variant.lower()).strip("-")


class SpoiltRunError(ValueError):
    """There is a run of this name, but it can't stand for the planned one: says why."""


def find_run(run: Planned, metric: str) -> tuple[History | None, Planned]:
    """Return the history of a finished run with this fingerprint: of its own name, else one that MLflow knows of.

    Also the plan: where the run of its own name is spoilt it has the next free one, NAME-2 and so on, to train under.
    """
    found, run = _own_run(run, metric)
    if found is not None:
        return found, run
    config = run.ready.config
    try:
        params = runs_by_tag(config.tracking.uri, config.tracking.experiment, FINGERPRINT_TAG, run.fingerprint)
    except Exception as error:  # MLflow is away: what is in storage under its own name was looked at
        log.warning("earlier runs were not looked up in MLflow: %s", one_line(error))
        return None, run
    for one in params:
        with suppress(StorageError, CheckpointError, SpoiltRunError):
            if one.get("storage") and one.get("name"):
                found = read_run(one["storage"], one["name"], run, metric)
        if found is not None:
            return found, run
    return None, run


def _own_run(run: Planned, metric: str) -> tuple[History | None, Planned]:
    name = run.ready.config.name
    for number in count(2):
        config = run.ready.config
        try:
            return read_run(config.storage, config.name, run, metric), run
        except SpoiltRunError as error:
            log.warning("%s is left as it is: %s", config.name, error)
            run = renamed(run, f"{name}-{number}")
        except (StorageError, CheckpointError):  # training says what is wrong there
            break
    return None, run


def record_is_open(run: Planned, found: History) -> bool:
    """Say whether a run that was found is the planned one, killed between its last checkpoint and its record's end.

    MLflow finds runs of other names only where they have ended.
    """
    config = run.ready.config
    return found.where == open_storage(config.folder).uri and synced_record(config) == "open"


def renamed(run: Planned, name: str) -> Planned:
    """Return the run under another name."""
    return replace(run, ready=replace(run.ready, config=replace(run.ready.config, name=name)))


def read_run(storage_uri: str, name: str, run: Planned, metric: str) -> History | None:
    """Return the history of a run if it is finished; None: there is none yet, or it isn't.

    Raises:
        SpoiltRunError: it can't stand for the planned run, and going on with it wouldn't help.
        StorageError, CheckpointError: it can't be read.
    """
    storage = open_storage(f"{storage_uri}/{name}")
    state, metadata, _ = newest_state(storage)
    if state is None:
        return None
    steered = [one.decision for one in records_of(state.decisions) if one.decision.replayed and one.decision.asked_by]
    if steered:
        raise SpoiltRunError(f"{steered[0].asked_by} steered it ({steered[0].kind})")
    if others := _other_workers(state, metadata.config):
        raise SpoiltRunError(f"{others} workers trained a part of it")
    if metadata.config.get("resume_from"):
        raise SpoiltRunError(f"it continued from {metadata.config['resume_from']}")
    if _fingerprint(metadata) != run.fingerprint:
        raise SpoiltRunError("another config, other data or an older version made it")
    if len(state.stage_starts) <= len(metadata.config["stages"]):
        return None
    about = {
        "variant": run.variant,
        "seed": run.seed,
        "name": name,
        "where": storage.uri,
        "fingerprint": run.fingerprint,
    }
    try:
        return history_of(state, metadata, metric, samples_per_epoch=run.ready.samples_per_epoch, reused=True, **about)
    except KeyError as error:
        raise SpoiltRunError(f"its evaluations were kept without {error.args[0]}") from None


def _other_workers(state: TrainState, config: Mapping[str, Any]) -> int:
    """Return a number of workers that trained a part of a run though its config asks for another; 0: none did."""
    for row in state.evaluations:
        asked = config["stages"][int(row["stage"])]["num_workers"] or config["cluster"]["num_workers"]
        if isinstance(asked, int) and row.get("workers", asked) != asked:
            return int(row["workers"])
    return 0


def _fingerprint(metadata: RunMetadata) -> str:
    return run_fingerprint(metadata.config, train=metadata.data, val=metadata.val)

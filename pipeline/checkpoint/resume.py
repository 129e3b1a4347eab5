"""Where a run starts: the first of these cases that applies.

1. The run's own storage holds valid checkpoints: the latest one. Newer ones that are incomplete or
   corrupt are skipped, each with a line that says so.
2. `resume_from` names a checkpoint, or a run (then its latest valid one): its complete state, that is weights, moving
   average, optimizer, cursor, stages and decisions. The data and its order must be the same. The last stage of a
   finished run continues if the config gives it more epochs.
3. `model.init_from` names weights: ImageNet's by the name of where they come from, a file, or a checkpoint or run
   (then its moving average, if there is one). Only weights are taken; the run begins at cursor 0.
4. None of these: fresh weights, drawn from the seed.

`planned_start` decides it on the driver, by names and sizes; `find_start` in a worker, which reads and verifies.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.storage.base import MissingKeyError, Storage
from infra.storage.open import open_storage
from model.config import ModelConfig
from model.pretrained import NAMED_WEIGHTS, named_weights
from pipeline.checkpoint.catalog import (
    PREFIX,
    CheckpointError,
    find_checkpoint,
    first_readable,
    list_checkpoints,
    newest_state,
    read_manifest,
    read_state,
    sha256_of_file,
    whole_files,
)
from pipeline.checkpoint.head import cursor_of
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import NextStage

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class Start:
    """What a run starts from."""

    state: TrainState | None = None
    """State to resume from; None: cursor 0."""
    metadata: RunMetadata = field(default_factory=RunMetadata)
    """Of the checkpoint."""
    snapshot: Any = None
    """The whole `Snapshot`; only from `find_start`."""
    weights: dict[str, Any] | None = None
    """Weights by name for cursor 0; only from `find_start`."""
    source: str = ""
    """Where it comes from: empty for the run's own checkpoints and for fresh weights."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""


def planned_start(config: TrainConfig, storage: Storage) -> Start:
    """Say on the driver what a run will start from.

    Raises:
        CheckpointError: `resume_from` or `model.init_from` names nothing that can be started from.
        PretrainedError: `model.init_from` names ImageNet weights that the model hasn't, or that can't be had.
    """
    state, metadata, skipped = newest_state(storage)
    notes = tuple(f"skipped a checkpoint: {line}" for line in skipped)
    if state is not None:
        return Start(state, metadata, notes=notes)
    if config.resume_from:
        state, metadata = _state_at(config.resume_from)
        state = reopened(state, len(config.stages))
        return Start(state, metadata, source=config.resume_from, notes=notes)
    if config.model.init_from:
        notes += tuple(f"skipped a checkpoint: {line}" for line in _check_weights(config.model))
        return Start(source=config.model.init_from, notes=notes)
    return Start(notes=notes)


def find_start(config: TrainConfig, storage: Storage) -> Start:
    """Read in a worker what the run starts from.

    Raises:
        CheckpointError: `resume_from` or `model.init_from` names nothing that can be started from.
    """
    from pipeline.checkpoint.format import latest_valid, read_checkpoint

    snapshot, skipped = latest_valid(storage)
    notes = tuple(f"skipped a checkpoint: {line}" for line in skipped)
    if snapshot is not None:
        return Start(snapshot.state, snapshot.metadata, snapshot, notes=notes)
    if config.resume_from:
        other, key = locate(config.resume_from)
        snapshot, more = (read_checkpoint(other, key), []) if key else latest_valid(other)
        if snapshot is None:
            raise CheckpointError(f"resume_from is {config.resume_from}: it holds no valid checkpoint")
        notes += tuple(f"skipped a checkpoint: {line}" for line in more)
        snapshot = replace(snapshot, state=reopened(snapshot.state, len(config.stages)))
        return Start(snapshot.state, snapshot.metadata, snapshot, source=config.resume_from, notes=notes)
    if config.model.init_from:
        weights = read_initial_weights(config.model.init_from, config.model.name)
        return Start(weights=weights, source=config.model.init_from, notes=notes)
    return Start(notes=notes)


def reopened(state: TrainState, num_stages: int) -> TrainState:
    """Return the state as it was before the last of `num_stages` stages ended, if it ended at this very cursor."""
    if len(state.stage_starts) != num_stages + 1 or state.stage_starts[-1] != state.cursor:
        return state
    ends = {"stage": num_stages - 1, "decision": NextStage.kind}
    *results, last, _ = state.stage_results
    return replace(
        state,
        stage_starts=state.stage_starts[:-1],
        stage_results=[*results, {name: value for name, value in last.items() if name != "ended_s"}],
        decisions=[entry for entry in state.decisions if not ends.items() <= entry.items()],
    )


def locate(uri: str) -> tuple[Storage, str | None]:
    """Return the storage of a run, and the key of the checkpoint in it if `uri` is one's own.

    Raises:
        CheckpointError: `uri` ends with a cursor at which there is none.
    """
    folder, _, name = uri.rstrip("/").rpartition(f"/{PREFIX}/")
    if folder and cursor_of(name) is not None:
        storage = open_storage(folder)
        return storage, find_checkpoint(storage, name)
    return open_storage(uri.rstrip("/").removesuffix(f"/{PREFIX}")), None


def read_initial_weights(uri: str, model: str = "") -> dict[str, Any]:
    """Return weights by name: of a file, of a checkpoint or a run's newest one, local or in S3; or a model's ImageNet
    weights, where `uri` is one of `NAMED_WEIGHTS`.

    Raises:
        CheckpointError: there is no such file or checkpoint, or it is corrupt.
        PretrainedError: the model has no such weights, or they can't be had.
        WeightsError: the file can't be read as weights.
    """
    from model.weights import read_weights

    if uri in NAMED_WEIGHTS:
        return read_weights(named_weights(uri, model))
    if not is_weights_file(uri):
        return _read_stored(uri)
    if "://" not in uri:
        return read_weights(uri)
    parent, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        open_storage(parent).download(name, Path(folder, name))
        return read_weights(Path(folder, name))


def _read_stored(uri: str) -> dict[str, Any]:
    """Return the weights of a checkpoint, or of a run's newest one, by name."""
    from model.weights import read_weights

    storage, named = locate(uri)
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        while True:
            (key, name, facts), _ = _weights_file(uri, storage, named)
            path = Path(folder, name)
            try:
                storage.download(f"{key}/{name}", path)
                if sha256_of_file(path) != facts["sha256"]:
                    raise CheckpointError(f"{storage.uri}/{key}/{name} is corrupt: it is not what its manifest says")
                return read_weights(path)
            except (CheckpointError, MissingKeyError):
                if named or key in list_checkpoints(storage):  # else the run has pruned it since it was listed
                    raise


def _check_weights(config: ModelConfig) -> list[str]:
    """Check that `model.init_from` names weights; return a line for each checkpoint that is passed over."""
    uri = config.init_from or ""
    if uri in NAMED_WEIGHTS:
        named_weights(uri, config.name)
        return []
    if not is_weights_file(uri):
        return _weights_file(uri, *locate(uri))[1]
    parent, _, name = uri.rpartition("/")
    if not open_storage(parent or "/").exists(name):
        raise CheckpointError(f"model.init_from is {uri}: there is no such file")
    return []


def is_weights_file(uri: str) -> bool:
    """Whether `model.init_from` names a file of weights, and no run or checkpoint."""
    return uri.endswith(WEIGHT_SUFFIXES) or ("://" not in uri and Path(uri).is_file())


def _weights_file(uri: str, storage: Storage, named: str | None) -> tuple[tuple[str, str, dict[str, Any]], list[str]]:
    """Return key, name and manifest entry of the weights of a checkpoint, or of a run's newest one, and a line for each
    newer one that is not whole."""

    def entry(key: str) -> tuple[str, str, dict[str, Any]]:
        files = read_manifest(storage, key) if named else whole_files(storage, key)
        name = "ema.safetensors" if "ema.safetensors" in files else "model.safetensors"
        if name not in files:
            raise CheckpointError(f"{storage.uri}/{key} holds no weights")
        return key, name, files[name]

    if named is not None:
        return entry(named), []
    found, skipped = first_readable(storage, entry)
    if found is None:
        raise CheckpointError(
            f"model.init_from is {uri}: neither a file of weights ({', '.join(WEIGHT_SUFFIXES)}) "
            "nor a run with a valid checkpoint"
        )
    return found, skipped


def recorded_run(uri: str, field: str) -> RunMetadata:
    """Return what a run's newest valid checkpoint, or the checkpoint that `uri` is, records of its run.

    Raises:
        CheckpointError: it is neither; the message begins with the field that named it.
    """
    return _state_at(uri, field)[1]


def _state_at(uri: str, field: str = "resume_from") -> tuple[TrainState, RunMetadata]:
    storage, key = locate(uri)
    if key is not None:
        return read_state(storage, key, read_manifest(storage, key))
    try:
        state, metadata, _ = newest_state(storage)
    except MissingKeyError:
        state, metadata = None, RunMetadata()
    if state is None:
        raise CheckpointError(f"{field} is {uri}: it is neither a checkpoint nor a run with a valid one")
    return state, metadata

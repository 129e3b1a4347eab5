"""The checkpoint format: writing and reading the tensors. What needs no PyTorch is in `catalog.py`.

A checkpoint is a folder `checkpoints/{cursor}-{epoch}-{random}` of the run's storage, in runs of earlier versions
`checkpoints/{cursor}`:

    model.safetensors       weights and buffers
    ema.safetensors         their moving average (when the run keeps one)
    optimizer.safetensors   the optimizer's state
    state.json              cursor, stages, decisions, results, config, data fingerprint, library versions
    manifest.json           size and SHA-256 of each of the others, cursor, stage, metrics; written last

Without a manifest a checkpoint is incomplete, with one that a file doesn't match corrupt: it is skipped and never
resumed from. The same holds for one that `checkpoints/head.json` doesn't list (`head.py`).
Nothing that is read from storage is unpickled.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from infra.storage.base import Data, Storage
from pipeline.checkpoint.catalog import (
    MANIFEST,
    CheckpointError,
    first_readable,
    parse_state,
    read_manifest,
    read_state,
    read_verified,
    sha256,
    state_file,
)
from pipeline.checkpoint.head import checkpoint_key
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.tensors import pack, pack_nested, unpack_nested


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's state in host memory: what a checkpoint holds."""

    state: TrainState
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    metadata: RunMetadata

    @property
    def key(self) -> str:
        """Folder of the checkpoint, relative to the run's storage."""
        return checkpoint_key(self.state.cursor)


def write_checkpoint(
    storage: Storage,
    snapshot: Snapshot,
    before_manifest: Callable[[], None] = lambda: None,
    wrote_file: Callable[[], None] = lambda: None,
    *,
    key: str = "",
) -> str:
    """Write a checkpoint and return its key. The manifest goes last: it makes the checkpoint complete.

    The files are written from the snapshot's own memory, one after the other. `before_manifest` is called just before
    the manifest: to make safe what a resumed run needs; `wrote_file` is called after each file. `key` is the
    folder: one of its own where others might write; empty: the cursor's.
    """
    key = key or snapshot.key
    files: dict[str, dict[str, Any]] = {}
    # A second checkpoint at one cursor differs from the first by its decisions alone. Its state has another name, so
    # that the first one is valid until the manifest is replaced. Listed, not looked up: S3 gives no reasons there.
    manifest = f"{key}/{MANIFEST}"
    again = manifest in storage.list(manifest)
    state_name = f"state-{uuid.uuid4().hex[:8]}.json" if again else "state.json"
    for name, make in _contents(snapshot, state_name).items():
        data = make()
        files[name] = {"bytes": sum(len(part) for part in data), "sha256": sha256(*data)}
        storage.write(f"{key}/{name}", *data)
        wrote_file()
    before_manifest()
    state = snapshot.state
    about = {
        "cursor": state.cursor,
        "stage": len(state.stage_starts) - 1,
        "trained_stage": state.trained_stage,
        "metrics": state.metrics_here(),
    }
    storage.write(f"{key}/{MANIFEST}", json.dumps({"files": files, **about}, indent=1).encode())
    return key


def _contents(snapshot: Snapshot, state_name: str) -> dict[str, Callable[[], list[Data]]]:
    """Return the files of a checkpoint, each with the function that makes its content."""
    state = json.dumps({"state": snapshot.state.to_dict(), "facts": snapshot.metadata.to_json()}, indent=1)
    contents: dict[str, Callable[[], list[Data]]] = {
        "model.safetensors": lambda: pack(snapshot.model),
        "optimizer.safetensors": lambda: pack_nested(snapshot.optimizer),
        state_name: lambda: [state.encode()],
    }
    ema = snapshot.ema
    if ema is not None:
        contents["ema.safetensors"] = lambda: pack(ema)
    return contents


def read_checkpoint(storage: Storage, key: str) -> Snapshot:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: a file is missing, or its size or SHA-256 is not the manifest's.
    """
    files = {name: read_verified(storage, key, name, facts) for name, facts in read_manifest(storage, key).items()}

    def parsed(name: str, parse: Callable[[bytes], Any]) -> Any:
        try:
            return parse(files[name])
        except Exception as error:  # each format's parser has errors of its own
            raise CheckpointError(f"{storage.uri}/{key}/{name} can't be read ({type(error).__name__})") from error

    if missing := {"model.safetensors", "optimizer.safetensors"} - files.keys():
        raise CheckpointError(f"{storage.uri}/{key} has no {min(missing)}: it was made by another version")
    state, metadata = parsed(state_file(files), parse_state)
    return Snapshot(
        state=state,
        model=parsed("model.safetensors", load_safetensors),
        ema=parsed("ema.safetensors", load_safetensors) if "ema.safetensors" in files else None,
        optimizer=parsed("optimizer.safetensors", unpack_nested),
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What of a checkpoint is needed to run its model."""

    state: TrainState
    metadata: RunMetadata
    name: str
    """`ema` or `model`."""
    tensors: dict[str, Tensor]
    """By the model's own names."""


def read_stored_weights(storage: Storage, key: str, *, ema: bool) -> StoredWeights:
    """Read and verify no more of a checkpoint than running its model needs.

    `ema` takes the moving average, if there is one.

    Raises:
        CheckpointError: a file is missing or corrupt.
    """
    files = read_manifest(storage, key)
    name = "ema" if ema and "ema.safetensors" in files else "model"
    file = f"{name}.safetensors"
    if file not in files:
        raise CheckpointError(f"{storage.uri}/{key} holds no weights")
    state, metadata = read_state(storage, key, files)
    try:
        tensors = load_safetensors(read_verified(storage, key, file, files[file]))
    except SafetensorError as error:
        raise CheckpointError(f"{storage.uri}/{key}/{file} can't be read ({error})") from error
    return StoredWeights(state, metadata, name, averaged_tensors(tensors) if name == "ema" else tensors)


def averaged_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in a moving average's state, named as in its model."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if name != "n_averaged"}


def latest_valid(storage: Storage) -> tuple[Snapshot | None, list[str]]:
    """Return the latest valid checkpoint, and a line for each newer one that is not.

    The order of cases: newest first; a corrupt one is skipped with its reason; none at all is a fresh start.
    """
    return first_readable(storage, partial(read_checkpoint, storage))

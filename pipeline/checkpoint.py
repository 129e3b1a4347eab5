"""Checkpoints: whole and verified, or not there.

A checkpoint is a folder `checkpoints/{cursor}` of the run's storage:

    model.safetensors       weights and buffers
    ema.safetensors         their moving average (when the run keeps one)
    optimizer.pt            the optimizer's state; read with torch's weights-only loader
    state.json              cursor, stages, decisions, results, config, data fingerprint, library versions
    manifest.json           size and SHA-256 of each of the others; written last

Without a manifest, or with one that a file doesn't meet, a checkpoint is torn: it is skipped, never resumed from.
Nothing that is read from storage is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from infra.storage import MissingKeyError, Storage

PREFIX = "checkpoints"
MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is torn or damaged, or doesn't fit this run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written, and which stay."""

    every_s: float = 300.0
    """Longest time between two checkpoints, in seconds; looked at on log steps. 0: no limit."""
    every_epochs: float = 1.0
    """Samples between two checkpoints, in epochs; one is also written at each stage's end. 0: no limit."""
    keep: int = 3
    """Newest checkpoints that stay; older ones are deleted once a newer one is whole."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep is {self.keep}: keep at least 1, resuming needs it")
        for name in ("every_s", "every_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"checkpoint.{name} is {getattr(self, name)}: it must be 0 (off) or more")


@dataclass(kw_only=True, slots=True)
class TrainState:
    """What a run is, besides its tensors. The cursor is the only data state there is."""

    cursor: int = 0
    """Samples consumed since the run's start, over all workers."""
    step: int = 0
    """Optimizer steps taken."""
    stage_starts: list[int] = field(default_factory=lambda: [0])
    """Cursor at which each stage so far began."""
    stage_results: list[dict[str, float]] = field(default_factory=lambda: [{}])
    """Per stage so far: when it began and ended (Unix time), training and evaluation time, and the newest metrics."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Everything that was decided, with its cursor; a resumed run repeats it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values of their own."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's state in host memory: what a checkpoint holds."""

    state: TrainState
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    facts: dict[str, Any]
    """Config, data fingerprint, versions, tracking id: JSON values."""

    @property
    def key(self) -> str:
        """Folder of the checkpoint, relative to the run's storage."""
        return f"{PREFIX}/{self.state.cursor:015d}"


def to_host(value: Any) -> Any:
    """Copy every tensor in nested dicts and lists to host memory of its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_host(item) for item in value)
    return value


def write_checkpoint(storage: Storage, snapshot: Snapshot, before_whole: Callable[[], None] = lambda: None) -> str:
    """Write a whole checkpoint and return its key. The manifest goes last: it is what makes it whole.

    `before_whole` is called just before that: what must be safe once a run can resume from here.
    """
    optimizer = io.BytesIO()
    torch.save(snapshot.optimizer, optimizer)
    state = {"state": snapshot.state.to_dict(), "facts": snapshot.facts}
    files = {
        "model.safetensors": _tensor_bytes(snapshot.model),
        "optimizer.pt": optimizer.getvalue(),
        "state.json": json.dumps(state, indent=1).encode(),
    }
    if snapshot.ema is not None:
        files["ema.safetensors"] = _tensor_bytes(snapshot.ema)
    for name, data in files.items():
        storage.write(f"{snapshot.key}/{name}", data)
    manifest = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    before_whole()
    storage.write(f"{snapshot.key}/{MANIFEST}", json.dumps({"files": manifest}, indent=1).encode())
    return snapshot.key


def read_checkpoint(storage: Storage, key: str) -> Snapshot:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: a file is missing, or its size or SHA-256 is not the manifest's.
    """
    files = {name: _verified(storage, key, name, facts) for name, facts in read_manifest(storage, key).items()}

    def parsed(name: str, parse: Callable[[bytes], Any]) -> Any:
        try:
            return parse(files[name])
        except Exception as error:  # each format's parser has errors of its own
            raise CheckpointError(f"{storage.uri}/{key}/{name} can't be read ({type(error).__name__})") from error

    state, facts = parsed("state.json", _parse_state)
    return Snapshot(
        state=state,
        model=parsed("model.safetensors", load_safetensors),
        ema=parsed("ema.safetensors", load_safetensors) if "ema.safetensors" in files else None,
        optimizer=parsed("optimizer.pt", lambda data: torch.load(io.BytesIO(data), weights_only=True)),
        facts=facts,
    )


def read_manifest(storage: Storage, key: str) -> dict[str, dict[str, Any]]:
    """Return a checkpoint's file names with their sizes and hashes, or raise CheckpointError if it is torn."""
    try:
        return json.loads(storage.read(f"{key}/{MANIFEST}"))["files"]
    except MissingKeyError as error:
        raise CheckpointError(f"{storage.uri}/{key} has no {MANIFEST}: it was not written to its end") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{storage.uri}/{key}/{MANIFEST} is damaged: {error}") from error


def list_checkpoints(storage: Storage) -> list[str]:
    """Return the keys of all checkpoints with a manifest, oldest first."""
    names = sorted(storage.list(f"{PREFIX}/"))
    return [name.removesuffix(f"/{MANIFEST}") for name in names if name.endswith(f"/{MANIFEST}")]


def newest_whole(storage: Storage) -> tuple[Snapshot | None, list[str]]:
    """Return the newest checkpoint that is whole and verified, and a line for each newer one that is not.

    The order of cases: newest first; a damaged one is skipped with its reason; none at all is a fresh start.
    """
    skipped: list[str] = []
    for key in reversed(list_checkpoints(storage)):
        try:
            return read_checkpoint(storage, key), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def prune(storage: Storage, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints, and torn ones older than those. Manifests go first."""
    kept = list_checkpoints(storage)[-keep:]
    if not kept:
        return
    names = [name for name in storage.list(f"{PREFIX}/") if name.rpartition("/")[0] < kept[0]]
    storage.delete(*sorted(names, key=lambda name: not name.endswith(MANIFEST)))


def _verified(storage: Storage, key: str, name: str, facts: dict[str, Any]) -> bytes:
    try:
        data = storage.read(f"{key}/{name}")
    except MissingKeyError as error:
        raise CheckpointError(f"{storage.uri}/{key}/{name} is missing") from error
    if len(data) != facts["bytes"] or _sha256(data) != facts["sha256"]:
        raise CheckpointError(f"{storage.uri}/{key}/{name} is damaged: it is not what its {MANIFEST} says")
    return data


def _parse_state(data: bytes) -> tuple[TrainState, dict[str, Any]]:
    values = json.loads(data)
    return TrainState(**values["state"]), values["facts"]


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return save_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

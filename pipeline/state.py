"""A run's state but its tensors, and the checkpoints of a run: which there are, and which are whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.storage import MissingKeyError, Storage

PREFIX = "checkpoints"
MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is torn or damaged, or doesn't fit this run."""


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


def prune(storage: Storage, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints, and torn ones older than those. Manifests go first."""
    kept = list_checkpoints(storage)[-keep:]
    if not kept:
        return
    names = [name for name in storage.list(f"{PREFIX}/") if name.rpartition("/")[0] < kept[0]]
    storage.delete(*sorted(names, key=lambda name: not name.endswith(MANIFEST)))


def newest_state(storage: Storage) -> tuple[TrainState, dict[str, Any]] | None:
    """Return state and facts of the newest checkpoint that seems whole: all files there, in the manifest's sizes.

    Their hashes are checked by the workers, which read them anyway.
    """
    sizes = storage.list(f"{PREFIX}/")
    for key in reversed(list_checkpoints(storage)):
        try:
            files = read_manifest(storage, key)
            if all(sizes.get(f"{key}/{name}") == facts["bytes"] for name, facts in files.items()):
                return parse_state(read_verified(storage, key, "state.json", files["state.json"]))
        except (CheckpointError, KeyError, TypeError, ValueError):
            continue
    return None


def read_verified(storage: Storage, key: str, name: str, facts: dict[str, Any]) -> bytes:
    """Return a file of a checkpoint, or raise CheckpointError if it is not what its manifest says."""
    try:
        data = storage.read(f"{key}/{name}")
    except MissingKeyError as error:
        raise CheckpointError(f"{storage.uri}/{key}/{name} is missing") from error
    if len(data) != facts["bytes"] or sha256(data) != facts["sha256"]:
        raise CheckpointError(f"{storage.uri}/{key}/{name} is damaged: it is not what its {MANIFEST} says")
    return data


def parse_state(data: bytes) -> tuple[TrainState, dict[str, Any]]:
    """Return the state and the facts in a `state.json`."""
    values = json.loads(data)
    return TrainState(**values["state"]), values["facts"]


def sha256(data: bytes) -> str:
    """Return the hash as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()

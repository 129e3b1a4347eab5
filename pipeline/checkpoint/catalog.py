"""The checkpoints of a run: which exist, are valid, or are the best. Needs no PyTorch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from infra.storage.base import Data, MissingKeyError, Storage, StorageError
from pipeline.checkpoint.head import (
    MANIFEST,
    PREFIX,
    cursor_of,
    read_head,
    valid_keys,
)
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint is incomplete or corrupt, can't be read by this version, or doesn't fit this run."""


class IncompleteCheckpointError(CheckpointError):
    """A checkpoint has no manifest: its writer was cut off, or is still writing."""


class CorruptCheckpointError(CheckpointError):
    """A file of a checkpoint is missing, or is not what the checkpoint's own manifest says: it will never be valid."""


def find_checkpoint(storage: Storage, name: str) -> str:
    """Return the key of a checkpoint that a user names by its folder's name, or by its cursor alone.

    Raises:
        CheckpointError: none of that cursor is valid.
    """
    if not name.isdecimal():
        return f"{PREFIX}/{name}"
    valid = {cursor_of(key): key for key in list_checkpoints(storage)}
    if (key := valid.get(int(name))) is None:
        there = ", ".join(map(str, valid)) or "none"
        raise CheckpointError(f"{storage.uri} has no valid checkpoint at cursor {int(name)}; there are: {there}")
    return key


def read_manifest(storage: Storage, key: str) -> dict[str, dict[str, Any]]:
    """Return a checkpoint's file names with their sizes and hashes, or raise CheckpointError if it is incomplete."""
    return _manifest(storage, key)["files"]


def _manifest(storage: Storage, key: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read(f"{key}/{MANIFEST}"))
        for name, facts in manifest["files"].items():
            if "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"{name!r} is not a file of a checkpoint")
            int(facts["bytes"]), str(facts["sha256"])
        return manifest
    except MissingKeyError as error:
        raise IncompleteCheckpointError(f"{storage.uri}/{key} has no {MANIFEST}: it is incomplete") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StorageError):
            raise
        raise CheckpointError(f"{storage.uri}/{key}/{MANIFEST} can't be read: {error}") from error


def list_checkpoints(storage: Storage) -> list[str]:
    """Return the keys of the valid checkpoints, oldest first."""
    while True:
        head, etag = read_head(storage)
        names = storage.list(f"{PREFIX}/")
        # One that is listed and not there was deleted by hand, or meanwhile by the run: then the head says what came.
        if head is None or all(f"{key}/{MANIFEST}" in names for key in head.keys) or read_head(storage)[1] == etag:
            return valid_keys(head, names)


def first_readable(
    storage: Storage, read: Callable[[str], T], among: Callable[[], Sequence[str]] | None = None
) -> tuple[T | None, list[str]]:
    """Return what `read` makes of the first checkpoint that it can read, and a line for each before it that it can't.

    The run may be training and prune what was listed before it is read: then all are listed again. None: there is no
    checkpoint.

    Args:
        storage: the run's.
        read: from a checkpoint's key; raises CheckpointError if it can't.
        among: lists keys of valid checkpoints in the order in which to try them; None: all, newest first.

    Raises:
        CheckpointError: there are checkpoints, of which none can be read.
    """
    while True:
        skipped: list[str] = []
        for key in list_checkpoints(storage)[::-1] if among is None else among():
            try:
                return read(key), skipped
            except CheckpointError as error:
                if key not in list_checkpoints(storage):
                    break
                skipped.append(str(error))
        else:
            if skipped:
                raise _none_readable(storage, skipped)
            return None, []


@dataclass(frozen=True, slots=True)
class BestRule:
    """Which checkpoint is the best."""

    metric: str
    """Name of the metric, such as `val/accuracy`."""
    highest: bool = True
    """Whether the highest value is the best, or the lowest."""


def best_checkpoint(storage: Storage, keys: Sequence[str], rule: BestRule) -> str | None:
    """Return the key with the best metric, the newest of equals; None when no checkpoint was evaluated."""
    found: list[tuple[float, str]] = []
    for key in keys:
        try:
            value = float(_manifest(storage, key)["metrics"][rule.metric])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            continue
        if math.isfinite(value):
            found.append((value if rule.highest else -value, key))
    return max(found)[1] if found else None


_UNLISTED = "is not in the head: its writer was cut off, or replaced by a newer worker group, just before it finished"


CheckpointCondition = Literal["valid", "incomplete", "unlisted", "corrupt"]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """What is known of one checkpoint in storage."""

    key: str
    cursor: int
    """Samples consumed since the run's start."""
    stage: int | None
    """Stages that are done, and so the index of the one that comes next; None where the manifest doesn't say."""
    bytes: int
    metrics: dict[str, float]
    """What was measured at this cursor."""
    state: CheckpointCondition
    """What it is; only a valid one is resumed from."""
    problem: str
    """Why it isn't valid, or an empty text."""
    verified: bool
    """Whether every file was read and has the manifest's SHA-256."""
    trained_stage: int | None = None
    """Index of the stage that was trained last; None where the manifest doesn't say."""


def describe_checkpoints(storage: Storage, *, verify: bool = False) -> list[CheckpointRow]:
    """Return a row for each checkpoint, valid or not, oldest first; with `verify` every file is read through."""
    valid: set[str] = set()
    rows: dict[str, CheckpointRow] = {}
    while True:
        valid |= {*list_checkpoints(storage)}
        sizes: dict[str, dict[str, int]] = {}
        for name, size in storage.list(f"{PREFIX}/").items():
            sizes.setdefault(name.rpartition("/")[0], {})[name] = size
        known = {key: row for key, row in rows.items() if not row.problem}
        found = [key for key in sorted(sizes) if cursor_of(key) is not None]
        rows = {key: known.get(key) or _describe(storage, key, sizes[key], verify) for key in found}
        if not any(row.problem and _is_pruned(storage, key, sizes[key]) for key, row in rows.items()):
            break
    valid |= {*list_checkpoints(storage)}  # one may have become valid, or have been pruned, between the two
    return [
        row
        if row.problem or key in valid
        else replace(row, state="unlisted", problem=f"{storage.location(key)} {_UNLISTED}")
        for key, row in rows.items()
    ]


def _is_pruned(storage: Storage, key: str, listed: Iterable[str]) -> bool:
    """Whether a checkpoint was deleted, or is being deleted, since its files were listed."""
    return not {*listed} <= storage.list(f"{key}/").keys()


def _describe(storage: Storage, key: str, sizes: dict[str, int], verify: bool) -> CheckpointRow:
    stage, trained_stage, problem, verified = None, None, "", False
    state: CheckpointCondition = "valid"
    metrics: dict[str, float] = {}
    try:
        manifest = _manifest(storage, key)
        stage, metrics = manifest.get("stage"), manifest.get("metrics") or {}
        trained_stage = manifest.get("trained_stage")
        _check_sizes(storage, key, manifest["files"], sizes)
        if verify:
            for name, facts in manifest["files"].items():
                read_verified(storage, key, name, facts)
            verified = True
    except CheckpointError as error:
        state = "incomplete" if isinstance(error, IncompleteCheckpointError) else "corrupt"
        problem = str(error)
    total = sum(sizes.values())
    return CheckpointRow(key, cursor_of(key) or 0, stage, total, metrics, state, problem, verified, trained_stage)


def _check_sizes(storage: Storage, key: str, files: dict[str, dict[str, Any]], sizes: dict[str, int]) -> None:
    for name, facts in files.items():
        there = sizes.get(f"{key}/{name}")
        if there is None:
            raise CorruptCheckpointError(f"{storage.uri}/{key}/{name} is missing")
        if there != facts["bytes"]:
            raise CorruptCheckpointError(
                f"{storage.uri}/{key}/{name} is corrupt: {there} bytes, its {MANIFEST} says {facts['bytes']}"
            )


def newest_state(storage: Storage) -> tuple[TrainState | None, RunMetadata, list[str]]:
    """Return state and metadata of the latest checkpoint that seems valid, and a line for each newer one that doesn't.

    Seems: all files are there, in the manifest's sizes. The workers, which read them anyway, check their hashes.
    """
    found, skipped = first_readable(storage, lambda key: read_state(storage, key, whole_files(storage, key)))
    return (*found, skipped) if found is not None else (None, RunMetadata(), skipped)


def whole_files(storage: Storage, key: str) -> dict[str, dict[str, Any]]:
    """Return a checkpoint's file names with their sizes and hashes, all of which are there in these sizes.

    Raises:
        CheckpointError: one isn't, or there is no manifest that says which there are.
    """
    files = read_manifest(storage, key)
    _check_sizes(storage, key, files, storage.list(f"{key}/"))
    return files


def read_state(storage: Storage, key: str, files: dict[str, dict[str, Any]]) -> tuple[TrainState, RunMetadata]:
    """Return a checkpoint's state and metadata; raise CheckpointError when it has none that can be read."""
    try:
        name = state_file(files)
        return parse_state(read_verified(storage, key, name, files[name]))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{storage.uri}/{key}/state.json can't be read ({type(error).__name__})") from error


def state_file(files: Iterable[str]) -> str:
    """Return the file that holds the state: `state.json`, or `state-X.json` of a checkpoint that was written again."""
    return next((name for name in files if name.startswith("state-")), "state.json")


def _none_readable(storage: Storage, problems: Sequence[str]) -> CheckpointError:
    """Return the error for a run that has checkpoints, of which none can be read: starting over would lose them."""
    all_of_them = f"none of the {len(problems)} checkpoints of {storage.uri} can be read ({problems[0]})"
    return CheckpointError(
        f"{all_of_them if len(problems) > 1 else problems[0]}; to start over, give the run another --name, or delete "
        f"{storage.uri}"
    )


def read_verified(storage: Storage, key: str, name: str, facts: dict[str, Any]) -> bytes:
    """Return a file of a checkpoint, or raise CheckpointError if it is not what its manifest says."""
    try:
        data = storage.read(f"{key}/{name}")
    except MissingKeyError as error:
        raise CorruptCheckpointError(f"{storage.uri}/{key}/{name} is missing") from error
    if len(data) != facts["bytes"] or sha256(data) != facts["sha256"]:
        raise CorruptCheckpointError(f"{storage.uri}/{key}/{name} is corrupt: it is not what its {MANIFEST} says")
    return data


def parse_state(data: bytes) -> tuple[TrainState, RunMetadata]:
    """Return the state and the metadata in a `state.json`."""
    values = json.loads(data)
    return TrainState(**values["state"]), RunMetadata.from_json(values["facts"])


def sha256(*data: Data) -> str:
    """Return the hash of some buffers, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the hash of a file's content as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

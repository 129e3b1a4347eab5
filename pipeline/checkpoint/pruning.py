"""Deletes a run's older checkpoints, and what lost writers have left. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infra.storage.base import Storage
from pipeline.checkpoint.catalog import (
    BestRule,
    CheckpointError,
    CorruptCheckpointError,
    best_checkpoint,
    read_verified,
    whole_files,
)
from pipeline.checkpoint.head import (
    MANIFEST,
    PREFIX,
    Writer,
    cursor_of,
    epoch_of,
    held_head,
    replace_head,
    valid_keys,
)


def prune(
    storage: Storage, keep: int, best: BestRule | None = None, *, written: str, writer: Writer | None = None
) -> None:
    """Delete all but the newest `keep` valid checkpoints and the best one.

    `written` is the one that this run has just made valid: it always stays. The run has not begun from a later one. If
    that one is proven to be corrupt it goes, and the run will write that cursor again; one that merely could not be
    read, as by an older version or for lack of memory, stays.

    Deleted is what was written in this epoch or an earlier one and is not in the head: of those, nobody can put one
    into the head any more but `writer`, which calls this between two checkpoints. Without a writer, as where there is
    no head, nobody else writes here. Manifests go first, so what is half deleted is incomplete, not corrupt.

    Raises:
        FencedError: a newer worker group writes now; nothing was deleted.
    """
    while True:
        head, etag = held_head(storage, writer) if writer is not None else (None, "")
        names = storage.list(f"{PREFIX}/")
        kept = _kept(storage, valid_keys(head, names), keep, best, written)
        if head is None:
            break
        pruned = replace(head, keys=tuple(key for key in head.keys if key in kept))
        if pruned == head or replace_head(storage, pruned, etag):
            break
    epoch = writer.epoch if writer is not None else 0
    folders = {name: name.rpartition("/")[0] for name in names}
    garbage = [
        name
        for name, folder in folders.items()
        if cursor_of(folder) is not None and folder not in kept and epoch_of(folder) <= epoch
    ]
    storage.delete(*sorted(garbage, key=lambda name: not name.endswith(MANIFEST)))


def _kept(storage: Storage, keys: Sequence[str], keep: int, best: BestRule | None, written: str) -> set[str | None]:
    later = [key for key in keys if key > written and not _is_corrupt(storage, key)]
    until = [key for key in keys if key <= written]
    return {*until[-max(1, keep) :], *later, best_checkpoint(storage, until, best) if best is not None else None}


def _is_corrupt(storage: Storage, key: str) -> bool:
    """Say whether a checkpoint's files are proven not to be what its manifest says; reads them through."""
    try:
        for name, facts in whole_files(storage, key).items():
            read_verified(storage, key, name, facts)
    except CorruptCheckpointError:
        return True
    except (CheckpointError, MemoryError):
        return False
    return False

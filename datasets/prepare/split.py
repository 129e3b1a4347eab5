"""Which images of somebody's files are held out for validation, and how a changed file is noticed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path

from datasets.errors import DataError
from datasets.prepare.source import Item

VAL_SHARE = 0.1
"""What is held out for validation unless a user says otherwise."""


def hold_out(
    items: tuple[Item, ...], share: float, group: Callable[[Item], Hashable], where: str | Path
) -> dict[str, tuple[Item, ...]]:
    """Hold out a share of each group, one image at least of two or more: those with the smallest hashes of names.

    Raises:
        DataError: no group has two; begins with `where`.
    """
    groups: defaultdict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[group(item)].append(item)
    held_out: set[Item] = set()
    for own in groups.values():
        ranked = sorted(own, key=lambda item: hashlib.sha256(item.name.encode()).digest())
        held_out |= {*ranked[: min(max(1, round(len(ranked) * share)), len(ranked) - 1)]}
    if not held_out:
        raise DataError(f"{where}: no validation split, and none can be held out: no class (with masks: no folder) has "
                        "two images outside the test split; add images")  # fmt: skip
    return {
        "train": tuple(item for item in items if item not in held_out),
        "val": tuple(item for item in items if item in held_out),
    }


def check_share(share: float) -> None:
    """Refuse a share that leaves one of the splits without images."""
    if not 0 < share < 1:
        raise ValueError(f"--val-share is {share}; it must be between 0 and 1")


def check_unused(share: float, where: str | Path) -> None:
    """Refuse a share that was asked for where nothing is held out.

    Raises:
        DataError: it isn't the usual one; begins with `where`.
    """
    if share != VAL_SHARE:
        raise DataError(f"{where}: --val-share {share:g} does nothing: there is a validation split, or --split asks "
                        "for one split alone; leave it out")  # fmt: skip


def mark_of(file: Path) -> str:
    """Return what tells that a file has changed."""
    stat = file.stat()
    return f"{stat.st_size} {int(stat.st_mtime)}"


def groups_of(items: tuple[Item, ...]) -> Callable[[Item], Hashable]:
    """Return what images are held out by: their class, the rarest of their classes, or with masks their folder.
    With targets all are one group.
    """
    counts = Counter(label for item in items for label in item.labels or ())

    def group(item: Item) -> Hashable:
        if item.labels is not None:
            return min(item.labels, key=lambda label: (counts[label], label), default=-1)
        if item.targets is not None:
            return 0
        return item.label if item.label >= 0 else str(Path(item.name).parent)

    return group

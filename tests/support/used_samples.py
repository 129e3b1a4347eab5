"""Which samples made a run's final weights: from the lines of its ranks, those that no restart threw away."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOGETHER_S = 5.0
"""Ranks of one group write their first lines within this time."""


@dataclass(slots=True)
class Group:
    """The steps of one worker group, by cursor and rank."""

    began: float
    world_size: int
    steps: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)

    @property
    def cursors(self) -> list[int]:
        """Cursors of the steps, in order."""
        return sorted(self.steps)


def groups(folder: Path) -> list[Group]:
    """Return the worker groups in the order in which they trained; each file is one rank of one group."""
    files = [lines for path in folder.glob("*.jsonl") if (lines := _lines(path))]
    found = [Group(lines[0]["time"], lines[0]["world_size"]) for lines in files if lines[0]["rank"] == 0]
    found.sort(key=lambda group: group.began)
    for lines in files:
        # Ranks step together, groups are seconds apart. A group whose rank 0 has not written yet is seen next time.
        group = min(found, key=lambda group: abs(group.began - lines[0]["time"]), default=None)
        if group is None or abs(group.began - lines[0]["time"]) > TOGETHER_S:
            continue
        for line in lines:
            ranks = group.steps.setdefault(line["cursor"], {})
            assert line["rank"] not in ranks
            assert line["world_size"] == group.world_size
            ranks[line["rank"]] = line
    return found


def final_steps(trained: list[Group], stop: int) -> dict[int, dict[int, dict[str, Any]]]:
    """Return the steps below cursor `stop` that count: a group begins at a checkpoint and replaces what came after."""
    steps: dict[int, dict[int, dict[str, Any]]] = {}
    for group in trained:
        first = group.cursors[0]
        steps = {cursor: ranks for cursor, ranks in steps.items() if cursor < first} | group.steps
    return {cursor: steps[cursor] for cursor in sorted(steps) if cursor < stop}


def check_each_once(steps: dict[int, dict[int, dict[str, Any]]], *, stop: int, batch_size: int) -> None:
    """Every position of the sample stream below `stop` is in exactly one of the steps, and in one rank of it."""
    assert list(steps) == list(range(0, stop, batch_size))
    for cursor, ranks in steps.items():
        assert sorted(ranks) == list(range(next(iter(ranks.values()))["world_size"]))
        used = sorted(stream for line in ranks.values() for stream in line["streams"])
        assert used == list(range(cursor, cursor + batch_size)), cursor


def lost_and_doubled(steps: dict[int, dict[int, dict[str, Any]]], *, stop: int) -> tuple[int, int]:
    """Return how many positions of the sample stream below `stop` no step used, and how many uses are too many."""
    used = [stream for ranks in steps.values() for line in ranks.values() for stream in line["streams"]]
    return stop - len(set(used) & set(range(stop))), len(used) - len(set(used))


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # a kill may cut the last one

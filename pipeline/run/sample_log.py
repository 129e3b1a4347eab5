"""Logs the samples of each step, for tests and for debugging a run.

With the environment variable `CRESCENDO_SAMPLE_LOG` naming a folder, each rank writes a line of JSON a step there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

from datasets.loading.batch import Batch

VARIABLE = "CRESCENDO_SAMPLE_LOG"


class SampleLog:
    """One rank's lines: when, cursor, rank, number of ranks, and stream indices and labels of its samples."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        folder = os.environ.get(VARIABLE)
        self._file: TextIO | None = None
        if folder:
            name = f"{time.time():.6f}-{os.getpid()}.jsonl"
            # Line by line: a process that is killed has written its last step.
            self._file = Path(folder, name).open("w", buffering=1)  # noqa: SIM115

    def add(self, batch: Batch, cursor: int) -> None:
        """Write the samples of the step at `cursor`."""
        if self._file is None:
            return
        line = {
            "time": time.time(),
            "cursor": cursor,
            "rank": self._rank,
            "world_size": self._world_size,
            "streams": batch.stream_index.tolist(),
            "labels": batch.labels.tolist(),
        }
        self._file.write(json.dumps(line) + "\n")


def last_cursor(folder: Path, *, but: Collection[Path] = ()) -> int:
    """Return the cursor of the newest step in a folder of such logs, without those in `but`; -1 where there is none."""
    for path in sorted(set(folder.glob("*.jsonl")) - set(but), reverse=True):  # names begin with the time
        lines = path.read_text().rpartition("\n")[0].splitlines()
        if lines:
            return int(json.loads(lines[-1])["cursor"])
    return -1

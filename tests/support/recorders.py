"""Recorders: what the loop and the checkpoint writer say, kept for tests to look at."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from pipeline.checkpoint.format import Snapshot
from pipeline.schedule.decisions import Decision
from pipeline.schedule.policy import Progress
from pipeline.training.hooks import TrainHooks


class Events:
    """Keeps what the saver says; can hold it up before a manifest."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.saved_at: list[int] = []
        self.lines: list[str] = []
        self.ended = ""

    def before_manifest(self) -> None:
        self.go.wait()

    def saved(self, uri: str, cursor: int) -> None:
        self.saved_at.append(cursor)

    def pruned(self) -> None:
        pass

    def waits(self, line: str) -> None:
        self.lines.append(line)

    def gave_up(self, line: str) -> None:
        self.ended = line


class Recorder(TrainHooks):
    """Keeps what the loop says; decides what the test says."""

    def __init__(self, decide: Callable[[Progress], tuple[Decision, ...]] = lambda _: ()) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.sizes: list[int] = []
        self.snapshots: list[Snapshot] = []
        self._decide = decide

    def stage_started(self, span: object, images: torch.Tensor) -> None:
        self.sizes.append(images.shape[-1])

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        self.rows.append((cursor, metrics))

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        return self._decide(progress)

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        self.snapshots.append(snapshot())

"""The memory of this process while it works."""

from __future__ import annotations

import threading
from typing import Any

import psutil


class PeakMemory:
    """The process's highest resident memory before a mark and after it, in bytes."""

    def __init__(self) -> None:
        self.base = self.peak = 0
        self._process, self._ended = psutil.Process(), threading.Event()

    def __enter__(self) -> PeakMemory:
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()

    def mark(self) -> None:
        """Count from here: what training alone needs is known."""
        self.base = self.peak

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self.peak = max(self.peak, self._process.memory_info().rss)

"""Faults that end no process and pass by themselves: a pause, a full disk, a slow network."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import psutil

from tests.chaos.run import Place, Run
from tests.support.slow_network import FAST, Network

FAULTS = ("pause", "disk", "network")
SECONDS = (2.0, 20.0)
"""How long a fault lasts: drawn between these."""
SLOW = Network(latency_s=0.2, bytes_per_s=2e6, cut_share=0.01)

Later = Callable[[float, Callable[[], Any]], None]
"""(after so many seconds, what to do)"""


class Faults:
    """What can go wrong at a place while a run trains there; `later` ends a fault after a random while."""

    def __init__(self, place: Place, run: Run, random: Random, later: Later) -> None:
        self._place, self._run, self._random, self._later = place, run, random, later

    def make(self, kind: str) -> str:
        """Let one begin, and return what exactly happens."""
        seconds = self._random.uniform(*SECONDS)
        what = {
            "pause": self._pause,
            "disk": self._fill_disk,
            "network": self._slow_network,
        }[kind](seconds)
        return f"{what} for {seconds:.0f} s"

    def _pause(self, seconds: float) -> str:
        """Stop a worker, the controller, the driver or a raylet; Ray gives a raylet up that is stopped for long."""
        nodes = self._place.nodes
        kinds: dict[str, Sequence[psutil.Process]] = {
            "worker": [worker for node in nodes.nodes for worker in nodes.train_workers(node)],
            "controller": nodes.controllers(),
            "driver": self._run.driver(),
            "raylet": nodes.raylets(),
        }
        kind, process = self._random.choice([(kind, process) for kind, found in kinds.items() for process in found])

        def wake() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

        self._later(seconds, wake)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
        return kind

    def _fill_disk(self, seconds: float) -> str:
        """Empty the shard cache, as one does who looks for space, and fill its disk nevertheless."""
        assert self._place.disk is not None
        for folder in self._place.disk.folder.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        self._place.disk.fill()
        self._later(seconds, self._place.disk.free)
        return "cache emptied, disk full"

    def _slow_network(self, seconds: float) -> str:
        links = (self._place.s3_link, self._place.mlflow_link)

        def pass_by() -> None:
            for link in links:
                link.network = FAST

        self._later(seconds, pass_by)
        for link in links:
            link.network = SLOW
        return "S3 and MLflow"

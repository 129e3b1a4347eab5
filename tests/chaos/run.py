"""A run of `jobs.train` that is resubmitted until it has ended, and who kills its parts."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from infra.storage.open import open_storage
from infra.tracking.spool import spooled_status
from jobs.benchmark.nodes import Nodes
from pipeline.run.sample_log import last_cursor
from tests.support.killing import kill_family
from tests.support.servers import MlflowServer, S3Server, Server
from tests.support.shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
BATCH = 24
SHARDS = {"train": [100, 100, 88], "val": [24]}
GIVE_UP_S = 300.0


@dataclass(slots=True)
class Place:
    """Where the runs train."""

    folder: Path
    nodes: Nodes
    s3: S3Server
    mlflow: MlflowServer
    steps_an_epoch: int = sum(SHARDS["train"]) // BATCH

    @property
    def uri(self) -> str:
        """Of all that is in S3."""
        return f"s3://{self.s3.bucket}"

    @property
    def samples(self) -> Path:
        """Folder of what the ranks write down of their steps."""
        return self.folder / "samples"

    def write_data(self) -> None:
        """Put the shards into S3."""
        for split, counts in SHARDS.items():
            storage = open_storage(f"{self.uri}/data/{split}")
            for path in write_shards(self.folder / "data" / split, counts).iterdir():
                storage.upload(path.name, path)


class Run:
    """`python -m jobs.train` in processes of its own, one after the other, until the run has ended."""

    def __init__(self, place: Place, name: str, workers: Sequence[int], epochs: int) -> None:
        self.place, self.name = place, name
        self.submissions = 0
        lengths = [epochs // 4 + (index < epochs % 4) for index in range(4)]
        stages = [f"--stages.{i}.{what}" for i in range(4) for what in (f"epochs={lengths[i]}", f"batch-size={BATCH}")]
        stages += [f"--stages.{i}.image-size={size}" for i, size in enumerate((32, 32, 48, 48))]
        self._arguments = [
            *("demo_scratch", "--name", name, "--storage", f"{place.uri}/runs", *stages),
            *(
                "--cluster.num-workers",
                *map(str, workers),
                "--cluster.max-failures",
                "-1",
                "--cluster.grow-check-s",
                "2",
            ),
            *("--data.train", f"{place.uri}/data/train", "--data.val", f"{place.uri}/data/val"),
            *("--data.cache-dir", str(place.folder / "cache"), "--trainer.log-every", "4"),
            *("--trainer.eval-every-epochs", "4", "--checkpoint.every-epochs", "1", "--checkpoint.every-s", "0"),
            *("--tracking.uri", place.mlflow.url, "--tracking.system-metrics", "False"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """What the submissions printed."""
        return self.place.folder / f"{self.name}.txt"

    def submit(self, address: str = "") -> None:
        """Submit it, or submit it again: to the place's cluster, or to the one at another address."""
        self.submissions += 1
        command = [sys.executable, "-m", "jobs.train", *self._arguments]
        command += ["--cluster.address", address or self.place.nodes.address]
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def kill_driver(self) -> None:
        """End the submission's process by SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def replaced(self) -> subprocess.Popen[bytes]:
        """Return the submission's process, which this is no longer."""
        assert self._process is not None
        old, self._process = self._process, None
        return old

    @property
    def is_driven(self) -> bool:
        """Whether a submission's process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_finished(self) -> bool:
        """Whether a submission has said that the run has ended well."""
        return self._process is not None and self._process.poll() == 0

    def finish(self) -> None:
        """Submit it and wait for its end."""
        self.submit()
        assert self._process is not None
        if self._process.wait(GIVE_UP_S * 2):
            raise RuntimeError(f"{self.name} failed:\n{self.output.read_text()}")
        self.keep_samples()

    def keep_samples(self) -> Path:
        """Put what the ranks wrote down into a folder of this run's own, and return that."""
        folder = self.place.folder / f"samples-{self.name}"
        folder.mkdir(exist_ok=True)
        for path in self.place.samples.glob("*.jsonl"):
            path.rename(folder / path.name)
        return folder

    def cursor(self) -> int:
        """Return the cursor of the newest step."""
        return last_cursor(self.place.samples)


@dataclass(slots=True)
class Kill:
    """One kill, and what came after it."""

    kind: str
    cursor: int
    """Of the newest step before it."""
    killed_s: float
    """When, in Unix time."""
    recovered_s: float = 0.0
    """When a later group took its first step; 0 where training never stood still."""


@dataclass(slots=True)
class Killer:
    """Kills parts of a run at random steps, and has them come back after a random while."""

    place: Place
    run: Run
    random: Random
    until_s: float
    """No kills after this, on the monotonic clock."""
    done: list[Kill] = field(default_factory=list)
    _returning: list[tuple[float, Callable[[], Any]]] = field(default_factory=list)
    """What comes back when, in Unix time."""

    def kill_all(self, kinds: Sequence[str], *, num_steps: int) -> None:
        """Submit the run; kill one part after the other at random steps; return when the run has ended."""
        # Not in the last quarter: each kill, and a second submission after it, must find a run that has steps to go.
        steps = sorted(self.random.sample(range(3, num_steps * 3 // 4), len(kinds)))
        self.run.submit()
        for kind, step in zip(kinds, steps, strict=True):
            self._wait(f"step {step}", lambda: self.run.cursor() >= step * BATCH)  # noqa: B023
            if time.monotonic() > self.until_s:
                break
            self._kill(kind)
        self._wait("the end", lambda: self.run.is_finished)
        self._bring_back(math.inf)
        if spooled_status(open_storage(f"{self.place.uri}/runs/{self.run.name}")) is not None:
            self.run.finish()  # MLflow was away at the end: submitted again, a finished run sends what is missing

    def _kill(self, kind: str) -> None:
        kill = Kill(kind, self.run.cursor(), time.time())
        self.done.append(kill)
        print(
            f"{time.strftime('%X')} {self.run.name}: kill {len(self.done)}, {kind}, cursor {kill.cursor}",
            file=sys.stderr,
        )
        if kind in ("S3", "MLflow"):
            self._kill_server(self.place.s3 if kind == "S3" else self.place.mlflow)
            return
        files = set(self.place.samples.glob("*.jsonl"))
        {
            "worker": lambda: self.random.choice(self._some(self._workers)).kill(),
            "node": self._kill_node,
            "driver": self.run.kill_driver,
            "controller": lambda: self._some(self.place.nodes.controllers)[0].kill(),
            "takeover": self._take_over,
        }[kind]()
        self._wait("the next step", lambda: last_cursor(self.place.samples, but=files) >= 0)
        kill.recovered_s = time.time()

    def _kill_node(self) -> None:
        nodes = self.place.nodes
        nodes.kill(self.random.choice(self._some(lambda: [node for node in nodes.nodes if nodes.train_workers(node)])))
        self._later(nodes.add)

    def _take_over(self) -> None:
        """Pause the submission, have a second one of the same name go on elsewhere, wake the first: it must give up."""
        paused = [*self._some(self._workers), *self._some(self.place.nodes.controllers)]
        old = self.run.replaced()
        paused.append(psutil.Process(old.pid))
        for process in paused:
            process.suspend()
        reached, files = self.run.cursor(), set(self.place.samples.glob("*.jsonl"))
        self.run.submit("local")
        further = reached + 4 * BATCH
        try:
            self._wait("the second submission", lambda: last_cursor(self.place.samples, but=files) >= further)
        except RuntimeError:
            kill_family(old)
            raise
        self.random.shuffle(paused)
        for process in paused:
            process.resume()
        if old.wait(GIVE_UP_S) != 1 or "was taken over by another submission" not in self.run.output.read_text():
            raise RuntimeError(
                f"{self.run.name}: the paused submission did not give up:\n{self.run.output.read_text()}"
            )
        if self.run.is_driven:
            kill_family(self.run.replaced())  # back to the cluster that the other kills are for

    def _workers(self) -> list[Any]:
        return [worker for node in self.place.nodes.nodes for worker in self.place.nodes.train_workers(node)]

    def _some(self, look: Callable[[], list[Any]]) -> list[Any]:
        """Return what there is to kill; a group may be about to begin."""
        self._wait("something to kill", lambda: bool(look()))
        return look()

    def _kill_server(self, server: Server) -> None:
        self._bring_back(math.inf)  # it may be down already
        server.kill()
        self._later(server.start)

    def _later(self, function: Callable[[], Any]) -> None:
        """Have `function` called after a random while; training continues meanwhile."""
        self._returning.append((time.time() + self.random.uniform(1, 8), function))

    def _bring_back(self, until_s: float) -> None:
        """Bring back what is due by then."""
        due = [entry for entry in self._returning if entry[0] <= until_s]
        self._returning = [entry for entry in self._returning if entry not in due]
        for _, function in due:
            function()

    def _wait(self, for_what: str, is_so: Callable[[], bool]) -> None:
        """Wait, and submit the run again when its driver has ended without having finished it."""
        deadline = time.monotonic() + GIVE_UP_S
        while not is_so():
            if not self.run.is_driven and not self.run.is_finished:
                self._bring_back(math.inf)  # a submission wants its servers
                self.run.submit()
            if time.monotonic() > deadline or (self.run.is_finished and for_what != "the end"):
                raise RuntimeError(f"{self.run.name}: waited for {for_what}\n{self.run.output.read_text()[-5000:]}")
            self._bring_back(time.time())
            time.sleep(0.05)

"""A run of `jobs.train` that is resubmitted until it has ended, and where it trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.storage.open import open_storage
from jobs.benchmark.nodes import Nodes
from pipeline.run.sample_log import last_cursor
from tests.support.servers import MlflowServer, S3Server
from tests.support.shards import write_shards
from tests.support.slow_network import SlowNetwork
from tests.support.small_disk import SmallDisk

ROOT = Path(__file__).resolve().parents[2]
BATCH = 24
SHARDS = {"train": [100, 100, 88], "val": [24]}
GIVE_UP_S = 600.0


@dataclass(slots=True)
class Place:
    """Where the runs train."""

    folder: Path
    nodes: Nodes
    s3: S3Server
    mlflow: MlflowServer
    s3_link: SlowNetwork
    """The way to the S3 server, which AWS_ENDPOINT_URL names."""
    mlflow_link: SlowNetwork
    disk: SmallDisk | None
    """Where the shard cache is; None where none can be made."""
    steps_an_epoch: int = sum(SHARDS["train"]) // BATCH

    @property
    def uri(self) -> str:
        """Of all that is in S3."""
        return f"s3://{self.s3.bucket}"

    @property
    def cache(self) -> Path:
        """Folder of the shard caches."""
        return self.disk.folder if self.disk else self.folder / "cache"

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
        self.place, self.name, self.epochs = place, name, epochs
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
            *("--data.cache-dir", str(place.cache / name), "--trainer.log-every", "4"),
            *("--trainer.eval-every-epochs", "4", "--checkpoint.every-epochs", "1", "--checkpoint.every-s", "0"),
            *("--tracking.uri", place.mlflow_link.url, "--tracking.system-metrics", "False"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """What the submissions printed."""
        return self.place.folder / f"{self.name}.txt"

    def submit(self, address: str = "") -> None:
        """Submit it, or submit it again: to the place's cluster, or to the one at another address."""
        self.submissions += 1
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(self._command(address), cwd=ROOT, stdout=output, stderr=output)

    def second(self) -> subprocess.Popen[str]:
        """Submit it once more, beside the submission that is this run's."""
        return subprocess.Popen(
            self._command(""), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _command(self, address: str) -> list[str]:
        command = [sys.executable, "-m", "jobs.train", *self._arguments]
        return [*command, "--cluster.address", address or self.place.nodes.address]

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

    def driver(self) -> list[psutil.Process]:
        """Return the submission's process if it is running."""
        process = self._process
        return [psutil.Process(process.pid)] if process is not None and process.poll() is None else []

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

"""The cost of checkpoints: the share of training time lost to them, and host memory.

A model trains on random images in this process; checkpoints are taken as in a run. A checkpoint costs the copy of the
state to host memory, within a step, and what the steps beside its writing take longer than the others. The S3 server
and whatever else is on the machine want its CPUs too: what the training thread waited for one, as the kernel counts it,
is told apart. On a busy machine the CPU time of the writing threads, and of the server, says most.
"""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from rich.table import Table

from infra.devstack.server import free_ports
from infra.devstack.servers import S3Server
from infra.storage.open import open_storage
from jobs.benchmark.flags import check_above_0, check_at_least, read_flags
from jobs.benchmark.peak_memory import PeakMemory
from jobs.common.display import wide_console
from jobs.recipes.solar_cells import demo_scratch
from model.checks import check_image_size, check_model
from model.config import ModelConfig
from pipeline.config import TrainConfig
from pipeline.training_config import CheckpointConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    storage: str = ""
    """Folder or `s3://bucket/prefix` for the checkpoints; empty: start an S3 server (SeaweedFS) here."""
    model: str = "efficientnet_v2_s"
    """Model to train."""
    image_size: int = 128
    """Image size in pixels."""
    batch_size: int = 8
    """Samples per step."""
    checkpoints: int = 5
    """Number of checkpoints."""
    gap_s: float = 30.0
    """Seconds of training without a checkpoint before each one, for comparison."""
    every_s: float = 60.0
    """Assumed seconds between checkpoints for the reported share of training time."""
    pin_server: bool = False
    """Keep the S3 server that is started here on the last CPU: the training finds the others free of it, as if the
    server were on another machine."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "checkpoints")
        check_above_0(self, "gap_s", "every_s")
        if self.pin_server and (self.storage or len(_cpus()) < 2):
            raise ValueError("pin_server: it needs a server that is started here, so no --storage, and two CPUs")
        check_model(ModelConfig(name=self.model))
        check_image_size(ModelConfig(name=self.model), self.image_size)


@dataclass(slots=True)
class CheckpointCosts:
    """Steps as (start, end, waited for a CPU), checkpoints as (taken, copied, whole), in seconds of one clock."""

    steps: list[tuple[float, float, float]] = field(default_factory=list)
    checkpoints: list[tuple[float, float, float]] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    """CPU time of a checkpoint's writing, in seconds: of this process's other threads, and of the S3 server."""

    def copies(self) -> list[float]:
        """Return for each checkpoint the seconds that the copy took."""
        return [copied - taken for taken, copied, _ in self.checkpoints]

    def beside(self, seconds: Callable[[tuple[float, float, float]], float]) -> list[float]:
        """Return for each checkpoint what the steps beside its writing took more than others of `seconds`."""
        beside = [[s for s in self.steps if s[1] > copied and s[0] < whole] for _, copied, whole in self.checkpoints]
        usual = statistics.median(seconds(s) for s in self.steps if all(s not in steps for steps in beside))
        return [sum(seconds(step) - usual for step in steps) for steps in beside]


class Events:
    """Records when a checkpoint is complete."""

    def __init__(self) -> None:
        self.whole_at = 0.0

    def before_manifest(self) -> None:
        """Nothing to make safe."""

    def saved(self, uri: str, cursor: int) -> None:
        """Note the time."""
        self.whole_at = time.perf_counter()

    def pruned(self) -> None:
        """Nothing to list."""

    def waits(self, line: str) -> None:
        """Storage that is away would spoil the measurement."""
        raise SystemExit(line)

    gave_up = waits


def main(argv: Sequence[str]) -> int:
    """Train, take checkpoints, and print what they cost."""
    options = read_flags(Options, argv, __doc__)
    with nullcontext((options.storage, None)) if options.storage else _s3_server() as (storage, server):
        trainee = _Trainee(options, storage, server)
        if options.pin_server and server is not None:
            _pin(server)
        for _ in range(5):
            trainee.step()
        trainee.measured.steps.clear()
        with PeakMemory() as memory:
            for number in range(options.checkpoints):
                trainee.train(options.gap_s)
                if number == 0:
                    memory.mark()
                trainee.checkpoint()
        _show(options, trainee, memory)
    return 0


@contextmanager
def _s3_server() -> Iterator[tuple[str, psutil.Process | None]]:
    """Run an S3 server on loopback, with this process's environment set to reach it."""
    port = free_ports(S3Server.num_ports, also_plus=10000)
    with tempfile.TemporaryDirectory(prefix="crescendo-benchmark-") as folder:
        keys = {"access_key": "benchmark", "secret_key": secrets.token_hex(16)}
        server = S3Server(Path(folder, "s3"), bucket="benchmark", port=port, **keys)
        server.start()
        os.environ.update(server.client_environment())
        try:
            yield f"s3://{server.bucket}/run", server.process()
        finally:
            server.stop()


class _Trainee:
    """A model with optimizer and moving average that trains on random images, and its checkpoints."""

    def __init__(self, options: Options, storage: str, server: psutil.Process | None) -> None:
        import torch

        from model.factory import build_model
        from pipeline.checkpoint.async_writer import Saver
        from pipeline.checkpoint.state import TrainState
        from pipeline.training.learner import Learner
        from pipeline.training.task import build_task

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = _config(options)
        torch.set_num_threads(config.cluster.threads_per_worker)  # as a worker computes
        classes = tuple(str(index) for index in range(1000))
        task = build_task(config.task, classes)
        self.learner = Learner(config, build_model(config.model, num_classes=len(classes)), task, device)
        shape = (options.batch_size, 3, options.image_size, options.image_size)
        self.images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        self.targets = torch.full((options.batch_size, len(classes)), 1 / len(classes), device=device)
        self.events, self.measured, self.state = Events(), CheckpointCosts(), TrainState()
        self.storage, self.server = open_storage(storage), server
        self.saver = Saver(self.storage, config.checkpoint, self.events)

    def step(self) -> None:
        """Take a step, and wait for its end."""
        start, waited = time.perf_counter(), _waited_s()
        terms = self.learner.step(self.images, self.targets, seed=0, lr=1e-6, micro=len(self.images))
        terms["loss"].item()
        self.measured.steps.append((start, time.perf_counter(), _waited_s() - waited))
        self.state.cursor += len(self.images)

    def train(self, seconds: float) -> None:
        """Take steps for so long."""
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            self.step()

    def checkpoint(self) -> None:
        """Take a checkpoint, and train on until it is complete."""
        from pipeline.checkpoint.format import Snapshot
        from pipeline.checkpoint.metadata import RunMetadata
        from pipeline.checkpoint.state import TrainState

        cpu, server_cpu = _others_cpu_s(), self._server_cpu_s()
        taken = time.perf_counter()
        state = TrainState(**self.state.to_dict())
        self.saver.take(Snapshot(state=state, metadata=RunMetadata(), **self.learner.to_host()))
        copied = time.perf_counter()
        while not self.saver.wait(0):
            self.step()
        self.measured.checkpoints.append((taken, copied, self.events.whole_at))
        self.measured.cpu.append((_others_cpu_s() - cpu, self._server_cpu_s() - server_cpu))

    def _server_cpu_s(self) -> float:
        """Return the CPU time that the S3 server has used, if it is ours."""
        if self.server is None:
            return 0.0
        times = self.server.cpu_times()
        return float(times.user + times.system)


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _pin(server: psutil.Process) -> None:
    """Keep the server with its children on the last CPU."""
    for process in (server, *server.children(recursive=True)):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, _cpus()[-1:])


def _elapsed(step: tuple[float, float, float]) -> float:
    return step[1] - step[0]


def _others_cpu_s() -> float:
    """Return the CPU time that this process's threads but the calling one have used."""
    return time.process_time() - time.thread_time()


def _waited_s() -> float:
    """Return for how long this thread was ready to run and no CPU was free; 0 where the kernel doesn't tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _config(options: Options) -> TrainConfig:
    base = demo_scratch()
    return replace(
        base,
        model=replace(base.model, name=options.model),
        optimizer=OptimizerConfig(),
        checkpoint=CheckpointConfig(keep=1, best_metric=""),
    )


def _show(options: Options, trainee: _Trainee, memory: PeakMemory) -> None:
    measured = trainee.measured
    rows = {
        "copy, within a step": measured.copies(),
        "writing, in a thread": [whole - copied for _, copied, whole in measured.checkpoints],
        "lost beside": measured.beside(_elapsed),
        "without CPU contention": measured.beside(lambda step: _elapsed(step) - step[2]),
        "CPU time of the threads": [writer for writer, _ in measured.cpu],
        "CPU time of the server": [server for _, server in measured.cpu],
    }
    copy, _, beside, own, *_ = (statistics.median(values) for values in rows.values())
    size = sum(trainee.storage.list("checkpoints/").values())
    table = Table(title=f"a checkpoint of {options.model}: {size / 1e6:.0f} MB to {trainee.storage.uri}")
    for name in ("seconds", "median", "min", "max"):
        table.add_column(name, justify="right")
    for name, values in rows.items():
        shown = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{value:.2f}" for value in shown))
    console = wide_console()
    console.print(table)
    shares = f"{(copy + beside) / options.every_s:.2%}, without CPU contention {(copy + own) / options.every_s:.2%}"
    console.print(f"share of training time lost at one checkpoint in {options.every_s:g} s: {shares}")
    console.print(f"peak of extra host memory: {(memory.peak - memory.base) / 1e6:.0f} MB")

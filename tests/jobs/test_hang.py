"""A run of which a loader process hangs goes on with a new worker group; a pause is no hang.

That it ends with the weights of one that was never disturbed is shown without Ray in
`tests/pipeline/run/test_hanging_loader.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from jobs.train import main
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import ControllerClient, ControllerError
from pipeline.schedule.decisions import Pause, Resume
from tests.support.shards import write_shards

TIMEOUT_S = 20
"""Long for a step, also on a busy machine, and short for a test."""


def arguments(folder: Path, name: str, tracking_uri: str) -> list[str]:
    """The demo recipe with two workers, a loader process each, and two epochs of 132 samples a stage."""
    stages = [f"--stages.{index}.epochs=2" for index in range(4)]
    stages += [f"--stages.{index}.image-size={size}" for index, size in enumerate((32, 48, 48, 64))]
    return [
        *("demo_scratch", "--name", name, "--storage", str(folder / "runs"), "--data.loader-workers", "1"),
        *("--data.train", str(folder / "train"), "--data.val", str(folder / "val"), "--trainer.log-every", "2"),
        *("--tracking.uri", tracking_uri, "--tracking.system-metrics", "False", "--cluster.standby", "False"),
        *("--checkpoint.every-epochs", "0.5", "--cluster.step-timeout-s", str(TIMEOUT_S)),
        *stages,
    ]


class Operator:
    """Pauses a run for longer than a rank may do nothing, and stops a loader process of it before it resumes."""

    def __init__(self, name: str, stacks: Path) -> None:
        self.name, self.stacks = name, stacks
        self.stopped: psutil.Process

    def work(self) -> None:
        self._wait_for("a controller", lambda status: True)
        ControllerClient.of_run(self.name).ask(Pause())
        self._wait_for("a pause", lambda status: status.phase == "paused")
        time.sleep(1.5 * TIMEOUT_S)
        status = ControllerClient.of_run(self.name).status()
        assert (status.phase, status.recoveries) == ("paused", 0)
        assert not self.stacks.exists()
        self.stopped = loaders()[0]
        self.stopped.suspend()
        ControllerClient.of_run(self.name).ask(Resume())

    def _wait_for(self, what: str, reached: Callable[[RunStatus], bool]) -> None:
        deadline = time.monotonic() + 200
        while True:
            try:
                if reached(ControllerClient.of_run(self.name).status()):
                    return
            except ControllerError:
                pass  # not yet
            assert time.monotonic() < deadline, what
            time.sleep(0.1)


def loaders() -> list[psutil.Process]:
    """The processes that Ray's workers below this process have forked."""
    below = psutil.Process().children(recursive=True)
    workers = {process.pid for process in below if process.name().startswith("ray::")}
    return [process for process in below if process.ppid() in workers]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_whose_loader_hangs_leaves_its_stacks_and_goes_on_to_its_end(
    tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "train", [50, 64, 23])
    write_shards(tmp_path / "val", [30])
    stacks = tmp_path / "runs" / "hangs" / "stacks"
    operator = Operator("hangs", stacks)
    with ThreadPoolExecutor(1) as pool:
        worked = pool.submit(operator.work)
        assert main(arguments(tmp_path, "hangs", sqlite_uri)) == 0
        worked.result()
    texts = [path.read_text() for path in sorted(stacks.iterdir())]
    assert [text for text in texts if f"process {operator.stopped.pid}, forked by it, stopped" in text]
    assert all("pipeline/training/trainer.py" in text for text in texts)
    assert not operator.stopped.is_running() or operator.stopped.status() == psutil.STATUS_ZOMBIE
    said = capsys.readouterr().out
    assert f"made no progress for {TIMEOUT_S} s (cluster.step_timeout_s): a new worker group resumes" in said
    assert f"its stacks are in {stacks}/" in said
    assert main(arguments(tmp_path, "hangs", sqlite_uri)) == 0
    assert "hangs is finished" in capsys.readouterr().out

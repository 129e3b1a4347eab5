from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infra.cluster.prestart import start_standby
from infra.cluster.ray_private import HOOK_VARIABLE


def mark() -> None:
    """What each new process runs first: leave its id."""
    Path(os.environ["MARKS"], str(os.getpid())).touch()


class Worker:
    def pid(self) -> int:
        return os.getpid()

    def start_standby(self) -> None:
        start_standby(0)


@pytest.mark.usefixtures("ray_cluster")
def test_a_new_worker_is_the_spare_process_that_was_warmed_up_for_it(tmp_path: Path) -> None:
    import ray

    env = {"MARKS": str(tmp_path), HOOK_VARIABLE: f"{__name__}.mark"}
    worker_class = ray.remote(num_cpus=1, runtime_env={"env_vars": env})(Worker)
    first = worker_class.remote()
    pid = ray.get(first.pid.remote())
    ray.get(first.start_standby.remote())
    deadline = time.monotonic() + 120
    while len(marks := {int(path.name) for path in tmp_path.iterdir()}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (spare,) = marks - {pid}
    ray.kill(first)
    second = worker_class.remote()
    assert ray.get(second.pid.remote()) == spare
    ray.kill(second)

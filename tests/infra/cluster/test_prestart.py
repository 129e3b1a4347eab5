from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infra.cluster.prestart import IDLE_CPUS, is_spare, machines_idle_cpus, start_standby
from infra.cluster.ray_private import HOOK_VARIABLE


def mark() -> None:
    """What each new process runs first: leave its id."""
    Path(os.environ["MARKS"], str(os.getpid())).touch()


class Worker:
    def pid(self) -> int:
        return os.getpid()

    def is_spare(self) -> bool:
        return is_spare()

    def start_standby(self) -> None:
        """Ask for a spare process where CPUs are busy at the first two looks."""
        looks = [0.1, IDLE_CPUS / 2, IDLE_CPUS]

        def idle_cpus(seconds: float) -> float:
            Path(os.environ["MARKS"], f"look-{len(looks)}").touch()
            return looks.pop(0)

        start_standby(0, idle_cpus=idle_cpus)


@pytest.mark.usefixtures("ray_cluster")
def test_a_new_worker_is_the_spare_process_that_was_warmed_up_for_it(tmp_path: Path) -> None:
    import ray

    env = {"MARKS": str(tmp_path), HOOK_VARIABLE: f"{__name__}.mark"}
    worker_class = ray.remote(num_cpus=1, runtime_env={"env_vars": env})(Worker)
    first = worker_class.remote()
    pid = ray.get(first.pid.remote())
    ray.get(first.start_standby.remote())
    deadline = time.monotonic() + 120
    while len(marks := {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len([*tmp_path.glob("look-*")]) == 3
    (spare,) = marks - {pid}
    ray.kill(first)
    second = worker_class.remote()
    assert ray.get(second.pid.remote()) == spare
    assert not ray.get(second.is_spare.remote())
    ray.kill(second)


def test_idle_cpus_are_at_most_those_of_the_machine() -> None:
    assert 0 <= machines_idle_cpus(0.1) <= (os.cpu_count() or 1)


def test_a_container_with_a_limit_has_no_more_idle_cpus_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine's CPUs, which it sees, may all be idle."""
    (tmp_path / "cpu.max").write_text("5000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 7000000\nuser_usec 1\n")
    monkeypatch.setattr("infra.cluster.prestart.CGROUP", tmp_path)
    assert machines_idle_cpus(0.1) <= 0.05

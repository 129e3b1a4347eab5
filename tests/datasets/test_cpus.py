"""The CPUs of a process in cgroups of both versions, in a container and outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datasets.cpus import usable_cpus


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for path, text in (
        ("proc/self/cgroup", cgroup),
        *((f"sys/fs/cgroup/{name}", text) for name, text in files.items()),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/user/me", {"user/cpu.max": "300000 100000", "user/me/cpu.max": "max 100000"}, 3),
        ("0::/../other", {"cpu.max": "400000 100000"}, 4),
        ("4:memory:/x\n2:cpu,cpuacct:/x", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("2:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
        ("2:cpuset:/x", {"cpuset/x/cpu.max": "100000 100000"}, 64),
        ("0::/", {"cpu.max": ""}, 64),
    ],
)
def test_a_quota_counts_where_it_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(64)})
    assert usable_cpus(machine(tmp_path, cgroup, files)) == expected


def test_without_cgroups_and_here(tmp_path: Path) -> None:
    bound = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path) == bound
    assert 1 <= usable_cpus() <= bound

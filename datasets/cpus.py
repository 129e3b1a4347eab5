"""How many CPUs this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs that this process is bound to, or as many as its cgroups let it use if that is less; at least 1.

    A container with a limit of 4 CPUs sees all 64 of its machine. `root` is where `/proc` and `/sys` are.
    """
    limits = [quota for folder in _cgroups(root) for quota in _quotas(folder)]
    return max(1, int(min([len(os.sched_getaffinity(0)), *limits])))


def _cgroups(root: Path) -> Iterator[Path]:
    """Return the folders of this process's cgroups for CPUs, of version 1 and 2, with those above them.

    In a container its own one may be mounted at the top, while its path is that on the host.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top, parts = root / "sys/fs/cgroup" / ("cpu" if controllers else ""), PurePosixPath(path).parts[1:]
        yield from (top.joinpath(*parts[:count]) for count in range(len(parts) + 1))


def _quotas(folder: Path) -> Iterator[float]:
    """Return the quota of a cgroup in CPUs; nothing where it has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)

"""Connecting to a cluster that isn't there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from infra.cluster.connect import ROOT, check_port

PROGRAM = """
from infra.cluster.config import ClusterConfig, ClusterError
from infra.cluster.connect import connect
try:
    connect(ClusterConfig(address="127.0.0.1:1"), num_workers=1)
except ClusterError as error:
    print(error)
"""


def test_a_cluster_that_is_not_there_is_one_line_without_rays_minutes_of_trying() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("cluster.address is '127.0.0.1:1': no Ray cluster answers there")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""  # Ray's own tries are said there


def test_only_addresses_with_a_port_are_looked_at() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(OSError, match="refused"):
            check_port(address, 1.0)
    for address in ("local", "auto", ""):
        check_port(address, 1.0)

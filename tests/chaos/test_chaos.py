"""Every part of a run is killed once, at a random step, and nothing is lost, doubled or changed by it.

The number of kills in a run is that of the environment variable CRESCENDO_CHAOS_KILLS, where it is set. Nodes are lost,
drained and added in `test_elastic.py` too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark.chaos import KINDS

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CRESCENDO_CHAOS_KILLS") or 0)
TIMEOUT_S = 580 + 60 * KILLS


def chaos(kills: int, *flags: str) -> str:
    """Return what the benchmark has printed, in single spaces."""
    command = [sys.executable, "-m", "jobs.benchmark", "chaos", "--kills", str(KILLS or kills), *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return " ".join(ended.stdout.split())


def check_kills(said: str, kills: int) -> None:
    """So many were carried out, of each kind as many as of the others, or one more."""
    counts = {kind: re.search(rf" {kind} │ (\d+)", said) for kind in ("kills", *KINDS)}
    found = {kind: int(count[1]) for kind, count in counts.items() if count}
    shares = {kind: (kills + len(KINDS) - 1 - index) // len(KINDS) for index, kind in enumerate(KINDS)}
    assert found == {"kills": kills} | {kind: share for kind, share in shares.items() if share}


@pytest.mark.soak
@pytest.mark.timeout(TIMEOUT_S + 20)
def test_a_run_whose_every_part_is_killed_ends_bit_for_bit_as_one_that_was_not() -> None:
    said = chaos(5, "--no-elastic")
    check_kills(said, KILLS or 5)
    assert "equal bit for bit" in said


@pytest.mark.soak
@pytest.mark.timeout(TIMEOUT_S + 20)
def test_a_run_of_one_to_two_workers_whose_every_part_is_killed_loses_and_doubles_nothing() -> None:
    said = chaos(6, "--no-fixed", "--steps-a-kill", "40")  # training goes on while a node starts, which takes a while
    check_kills(said, KILLS or 6)
    for name in ("samples lost", "samples used twice", "metrics lost", "metrics doubled"):
        assert re.search(rf"{name} │ 0\b", said), said

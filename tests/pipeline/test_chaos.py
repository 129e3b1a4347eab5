"""Every part of a run is killed once, at a random step, and nothing is lost, doubled or changed by it.

The number of kills is that of the environment variable CRESCENDO_CHAOS_KILLS, where it is set. The loss of nodes is in
`test_elastic.py`; `python -m jobs.benchmark chaos` kills a run of changing worker counts too.
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


def chaos(kills: int, left_out: str) -> str:
    """Return what the benchmark has printed, in single spaces."""
    command = [sys.executable, "-m", "jobs.benchmark", "chaos", "--kills", str(KILLS or kills), left_out]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return " ".join(ended.stdout.split())


def check_kills(said: str, kills: int) -> None:
    """So many were carried out, of each kind as many as of the others, or one more."""
    counts = {kind: re.search(rf" {kind} │ (\d+)", said) for kind in ("kills", *KINDS)}
    found = {kind: int(count[1]) for kind, count in counts.items() if count}
    shares = {kind: (kills + len(KINDS) - 1 - index) // len(KINDS) for index, kind in enumerate(KINDS)}
    assert found == {"kills": kills} | {kind: share for kind, share in shares.items() if share}


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 20)
def test_a_run_whose_every_part_is_killed_ends_bit_for_bit_as_one_that_was_not() -> None:
    said = chaos(5, "--no-elastic")
    check_kills(said, KILLS or 5)
    assert "equal bit for bit" in said

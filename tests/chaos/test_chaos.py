"""Every part of a run is killed at a random step, in one of two runs, and nothing is lost, doubled or changed by it.

The number of kills in a run is that of the environment variable CRESCENDO_CHAOS_KILLS, where it is set. Nodes are lost,
drained and added in `tests/pipeline/run/test_ray_policies.py` too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.__main__ import KINDS, main

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CRESCENDO_CHAOS_KILLS") or 0)
TIMEOUT_S = 1800 + 120 * KILLS


def chaos(kills: int, *flags: str) -> list[dict[str, Any]]:
    """Return what the kills have changed of each of the runs that the flags leave: the fields of a `Verdict`."""
    command = [sys.executable, "-m", "tests.chaos", "--kills", str(kills), *flags, "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return list(json.loads(ended.stdout.splitlines()[-1]))


def check(verdict: dict[str, Any]) -> None:
    """Nothing is lost, doubled or left over."""
    counts = ("samples_lost", "samples_doubled", "rows_lost", "rows_doubled", "orphans")
    assert {name: verdict[name] for name in counts} == dict.fromkeys(counts, 0)
    assert verdict["samples"] > 0
    assert verdict["rows"] > 0


@pytest.mark.soak
@pytest.mark.timeout(TIMEOUT_S + 20)
def test_runs_whose_every_part_is_killed_lose_and_double_nothing_and_the_one_of_two_workers_no_bit() -> None:
    # Together, since both are held against one undisturbed run, and share the kinds of kills.
    fixed, elastic = chaos(KILLS or 4, "--steps-a-kill", "60")
    check(fixed)
    check(elastic)
    assert {kill["kind"] for verdict in (fixed, elastic) for kill in verdict["kills"]} == {*KINDS}
    assert fixed["different"] == []
    assert set(fixed["groups"]) == {2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "bribe"], r"^--only bribe: expected one of worker, "),
        (["--kills", "many"], r"^--kills: 'many' is not an integer$"),
        (["--steps-a-kill", "0"], r"^--steps-a-kill 0: must be at least 1$"),
        (["--wrong", "3"], r"^Unrecognized options: --wrong \(.*--help lists them\)$"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(flags)

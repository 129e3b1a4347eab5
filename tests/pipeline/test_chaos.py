"""Every part of a run is killed once, at a random step, and nothing is lost, doubled or changed by it.

The loss of nodes is in `test_elastic.py`; `python -m jobs.benchmark chaos` kills more, and all kinds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_whose_every_part_is_killed_ends_bit_for_bit_as_one_that_was_not() -> None:
    command = [sys.executable, "-m", "jobs.benchmark", "chaos", "--kills", "5", "--no-elastic"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = " ".join(ended.stdout.split())
    for part in ("worker", "S3", "driver", "MLflow", "controller"):
        assert f"{part} │ 1" in said
    assert "equal bit for bit" in said

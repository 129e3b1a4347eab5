"""Runs a job as its command line does, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest

from jobs import prepare as prepare_job
from jobs.common.cli import run_main


def exit_code(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Run a job's `main`; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job", *argv])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def prepare(argv: Sequence[str]) -> int:
    """Run `python -m jobs.prepare`; return its exit code."""
    return exit_code(prepare_job.main, argv)

"""The benchmarks' flags: read in one way, with one-line errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from jobs.common.parsing import UsageError, parse

T = TypeVar("T")


def read_flags(kind: type[T], argv: Sequence[str], description: str | None) -> T:
    """Parse a benchmark's flags; a switch is `--json` where it is off by default, `--no-standby` where it is on.

    Raises:
        UsageError: an unknown flag, or a value that it doesn't take.
    """
    return parse(kind, argv, description=description, config=(tyro.conf.FlagCreatePairsOff,))


def flag(name: str) -> str:
    """Return a field as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def check_at_least(options: Any, low: float, *names: str) -> None:
    """Raise UsageError for the first of these fields that is below `low`."""
    for name in names:
        if not getattr(options, name) >= low:
            raise UsageError(f"{flag(name)} {getattr(options, name)}: must be at least {low}")


def check_above_0(options: Any, *names: str) -> None:
    """Raise UsageError for the first of these fields that is not above 0."""
    for name in names:
        if not getattr(options, name) > 0:
            raise UsageError(f"{flag(name)} {getattr(options, name)}: must be above 0")

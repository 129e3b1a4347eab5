"""The text of the members `.labels` and `.targets`."""

from __future__ import annotations

import itertools
import math
import re

from datasets.errors import DataError

LARGEST_BYTES = (1 << 31) - 1
"""Of a member, and the largest class number."""
_LABELS = re.compile(rb"(?:0|[1-9][0-9]{0,9})(?: (?:0|[1-9][0-9]{0,9}))*|")


def parse_labels(text: bytes, message: str) -> tuple[int, ...]:
    """Return the classes in a `.labels` member; a line end after them is let pass.

    Raises:
        DataError: it holds something else, begun by `message`.
    """
    text = text.rstrip(b"\r\n")
    labels = tuple(map(int, text.split())) if _LABELS.fullmatch(text) else None
    if labels is None or max(labels, default=0) > LARGEST_BYTES or any(a >= b for a, b in itertools.pairwise(labels)):
        raise DataError(f"{message} {text[:40]!r}, not class numbers in ascending order with one space between them")
    return labels


def parse_targets(text: bytes, message: str) -> tuple[float, ...]:
    """Return the numbers in a `.targets` member; a line end after them is let pass.

    Raises:
        DataError: it holds something else, begun by `message`.
    """
    try:
        numbers = tuple(map(float, text.decode("ascii").rstrip("\r\n").split(" ")))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise DataError(f"{message} {text[:40]!r}, not numbers with one space between them")
    return numbers

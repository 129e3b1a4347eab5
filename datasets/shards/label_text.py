"""The text of the members that hold a sample's label: `.cls`, `.txt`, `.json`, `.labels` and `.targets`."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from datasets.errors import DataError
from datasets.shards.class_names import is_one_line

LARGEST_BYTES = (1 << 31) - 1
"""Of a member, and the largest class number."""
LARGEST_TARGET = 3.4e38
"""What 32 bits hold: models compute in them."""
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
    if not numbers or not all(abs(number) <= LARGEST_TARGET for number in numbers):  # NaN is not
        raise DataError(f"{message} {text[:40]!r}, not numbers with one space between them, up to {LARGEST_TARGET:.2g}")
    return numbers


def parse_number(text: bytes, message: str) -> int:
    """Return the class number in a `.cls` member.

    Raises:
        DataError: it holds something else, begun by `message`.
    """
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{message} {text[:40]!r}, not a class number") from None
    if not 0 <= label <= LARGEST_BYTES:
        raise DataError(f"{message} {label}; class numbers start at 0 and are below 2^31")
    return label


def parse_name(text: bytes, message: str) -> str:
    """Return the class name in a `.txt` member; empty where it holds none.

    Raises:
        DataError: it is no line of text, begun by `message`.
    """
    try:
        name = text.decode().strip()
    except UnicodeDecodeError:
        raise DataError(f"{message} {text[:40]!r}, not text in UTF-8") from None
    if not is_one_line(name):
        raise DataError(f"{message} {name[:40]!r}; a class name is one line without control characters")
    return name


def parse_json_label(data: bytes, field: str, message: str) -> int | str | None:
    """Return the class number or name in a field of a `.json` member; None where it holds none.

    Raises:
        DataError: it holds something else, begun by `message`.
    """
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{message} not readable JSON") from None
    value = content.get(field) if isinstance(content, dict) else content
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return parse_name(value.encode("utf-8", "surrogatepass"), message)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_BYTES:
        raise DataError(f"{message} {json.dumps(value)[:40]}; it must be a class name or a number from 0 on")
    return value

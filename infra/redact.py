"""Errors and addresses as text that may be shown: no user, no password."""

from __future__ import annotations

import re


def one_line(error: Exception) -> str:
    """Return an error's text, shortened to one line, without secrets."""
    return redacted(" ".join(str(error).split()))[:200]


def redacted(text: str) -> str:
    """Return a text with the user and password of its URLs removed."""
    return re.sub(r"(\w://)[^/@\s]*@", r"\1", text)


def last_line(error: BaseException) -> str:
    """Return the innermost message of an error that came through Ray: its last line, after the tracebacks."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(cause)

"""What a user of the data can cause."""

from __future__ import annotations


class DataError(ValueError):
    """The data, or what the configuration says of it, can't be used; one line with the cure."""


class DataAwayError(DataError):
    """Where the data are was away or busy for longer than a call waits; the same call may succeed later."""

"""What a user of the data can cause."""

from __future__ import annotations


class DataError(ValueError):
    """The data, or what the configuration says of it, can't be used; one line with the cure."""

"""Errors that a user of the data can cause."""

from __future__ import annotations

from typing import Self

from infra.storage.failures import FailureClass


class DataError(ValueError):
    """The data, or what the configuration says of it, can't be used; one line with the cure."""

    failure = FailureClass.DATA


class MissingDataError(DataError):
    """There is no such shard or folder, or no shard in it."""

    place: str = ""
    """The shard's or the folder's absolute path, or its URL."""

    @classmethod
    def at(cls, place: str, why: str) -> Self:
        """Return the error of a place. Not by `__init__`: an error that crosses processes is made again of its text."""
        error = cls(f"{place}: {why}")
        error.place = place
        return error


class DataAccessError(DataError):
    """Where the data are can't be read or written as things are set up: credentials, permissions, the address."""

    failure = FailureClass.OPERATOR


class DataAwayError(DataError):
    """Where the data are was away or busy for longer than a call waits; the same call may succeed later."""

    failure = FailureClass.TRANSIENT


PLACE_ERRORS = (DataAccessError, DataAwayError)
"""What is wrong with a place, and not with the file that was to be read there: no reason to leave that file out."""

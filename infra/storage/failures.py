"""The class of a failure, which decides whether an operation is retried; never the exception's type by accident."""

from __future__ import annotations

import copy
import errno
from enum import Enum
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class FailureClass(Enum):
    """What a failure calls for. An error of ours says its own, as `failure`."""

    TRANSIENT = "transient"
    """Away, busy, full, slow or broken for now: tried again, and logged when that takes long."""
    OPERATOR = "operator"
    """Configuration, credentials, permissions: never tried again; one line that says what to do."""
    DATA = "data"
    """The data are damaged or not what was indexed: never tried again; one line that names them."""
    BUG = "bug"
    """None of these: nobody expected it. Tried again a bounded number of times, and shown with its traceback."""


# Faults of disks and networks that may be over the next time.
_PASSING_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE),
}
_OPERATOR_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}
_OF_ERRNO = dict.fromkeys(_PASSING_ERRNOS, FailureClass.TRANSIENT) | dict.fromkeys(
    _OPERATOR_ERRNOS, FailureClass.OPERATOR
)


def failure_class(error: BaseException) -> FailureClass:
    """Return the class of any failure.

    What doesn't say its own: network and disk by their error number; every other `ValueError` is what a user can
    cure, by this project's habit; all else is a bug.
    """
    own = getattr(error, "failure", None)
    if isinstance(own, FailureClass):
        return own
    if isinstance(error, (ConnectionError, TimeoutError)):
        return FailureClass.TRANSIENT
    if isinstance(error, OSError):
        return _OF_ERRNO.get(error.errno or 0, FailureClass.BUG)
    return FailureClass.OPERATOR if isinstance(error, ValueError) else FailureClass.BUG


def is_transient(error: BaseException) -> bool:
    """Say whether the same thing may succeed later."""
    return failure_class(error) is FailureClass.TRANSIENT


def reworded(error: E, text: str) -> E:
    """Return an error with another text. Its class and its fields stay: what it calls for doesn't change with its text.

    It is one whose text is its only argument, as ours are.
    """
    again = copy.copy(error)
    again.args = (text,)
    return again

"""What the data warn of, told to the user: a worker's own log is on its node, where nobody looks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

_MOST = 20


class Relay(logging.StreamHandler):
    """Writes warnings to the log as before, and tells the first of them.

    In this process only: a forked loader process has the handler too, but can't reach the controller.

    Args:
        tell: called with one line.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self._tell, self._process, self._left = tell, os.getpid(), _MOST

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and tell it."""
        super().emit(record)
        if os.getpid() == self._process and self._left:
            self._left -= 1
            self._tell(record.getMessage() + ("" if self._left else " (what follows is in the workers' logs only)"))


def relay_warnings(package: str, tell: Callable[[str], object]) -> None:
    """Tell the warnings of a package's loggers; of the last caller only, where a process is used again."""
    logger = logging.getLogger(package)
    for handler in [handler for handler in logger.handlers if isinstance(handler, Relay)]:
        logger.removeHandler(handler)
    logger.addHandler(Relay(tell))

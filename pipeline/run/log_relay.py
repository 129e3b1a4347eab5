"""Relays the data's log lines to the user, since a worker's own log stays on its node."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from infra.redact import redacted

_MOST = 20


class Relay(logging.StreamHandler):
    """Writes warnings and information to the log, and tells the first lines, each once.

    In this process only: a forked loader process has the handler too, but can't reach the controller.

    Args:
        tell: called with one line.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self._tell, self._process = tell, os.getpid()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and tell it."""
        super().emit(record)
        line = redacted(record.getMessage())
        if os.getpid() == self._process and line not in self._told and len(self._told) < _MOST:
            self._told.add(line)
            self._tell(line + ("" if len(self._told) < _MOST else " (what follows is in the workers' logs only)"))


def relay_log(package: str, tell: Callable[[str], object]) -> None:
    """Tell what a package's loggers say; to the last caller only, where a process is used again."""
    logger = logging.getLogger(package)
    logger.setLevel(logging.INFO)
    for handler in [handler for handler in logger.handlers if isinstance(handler, Relay)]:
        logger.removeHandler(handler)
    logger.addHandler(Relay(tell))

"""Logs of workers and controllers as JSON lines on stderr, which Ray keeps in each process's log file."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from infra.redact import redacted

PACKAGES = ("jobs", "pipeline", "model", "datasets", "infra")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, message, what all records of the process share, and its extras."""

    def __init__(self, **shared: Any) -> None:
        super().__init__()
        self.shared = shared

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **self.shared,
            **{name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"},
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


_FORMATTER = JsonLines()


def log_as_json(**shared: Any) -> None:
    """Have this process write the project's records as JSON lines, from now on each with the values of `shared`."""
    _FORMATTER.shared = shared
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTER)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]  # a process that serves another run after this one says each line once
        logger.setLevel(logging.INFO)
        logger.propagate = False


def add_to_log(**shared: Any) -> None:
    """Add values to all further records, or change them: a run's stage."""
    _FORMATTER.shared |= shared

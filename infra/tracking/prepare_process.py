"""`prepare` in a process of its own: MLflow, whose import takes seconds, stays out of the process that waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.redact import one_line
from infra.tracking.config import TrackingConfig, prepare
from infra.tracking.errors import TrackingAwayError, TrackingError

FIELDS = ("uri", "experiment", "artifact_location")
"""Of a `TrackingConfig`: what `prepare` looks at."""
LIMIT_S = 600.0
"""For how long MLflow is waited for: its tables are made in seconds, an older version's changed in minutes."""
_EXIT_CODES = {TrackingError: 3, TrackingAwayError: os.EX_TEMPFAIL}
"""Class of an error -> exit code of the process that has its text on standard output."""


@contextmanager
def prepared_meanwhile(config: TrackingConfig) -> Iterator[None]:
    """Prepare MLflow beside what is done in the context; at its end MLflow is ready.

    Where this process has MLflow already, it prepares it itself, and first.

    Raises:
        TrackingError: as `prepare`.
    """
    if "mlflow" in sys.modules:
        prepare(config)
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends what waits for it
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already: its exit code says why
            process.stdin.write(json.dumps({name: getattr(config, name) for name in FIELDS}))  # no secret in `ps`
            process.stdin.close()
        process.stdin = None
        try:
            yield
        finally:  # what fails beside it must not leave half of MLflow's tables behind
            said, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        held = f"MLflow is not ready after {LIMIT_S:.0f} s: another process may hold its database"
        raise TrackingAwayError(held) from None
    finally:
        process.kill()
        process.wait()
    for kind, code in _EXIT_CODES.items():
        if process.returncode == code:
            raise kind(said)
    if process.returncode:
        raise TrackingError(f"MLflow could not be prepared: {one_line(RuntimeError(errors.strip()))[-300:]}")


def main() -> None:
    """Prepare the MLflow that standard input names."""
    try:
        prepare(TrackingConfig(**json.load(sys.stdin)))
    except TrackingError as error:
        sys.stdout.write(str(error))
        sys.exit(_EXIT_CODES[type(error)])


if __name__ == "__main__":
    main()

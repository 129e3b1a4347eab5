"""A call that must not hang its caller, whatever hangs in it."""

from __future__ import annotations

import threading
from collections.abc import Callable


def call_with_timeout(seconds: float, call: Callable[[], None]) -> None:
    """Carry out a call in a thread of its own, and wait for it so long. Its error is raised here.

    Raises:
        TimeoutError: it has not ended; its thread continues, and keeps no process alive.
    """
    errors: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)
        ended.set()

    threading.Thread(target=work, name="call_with_timeout", daemon=True).start()
    if not ended.wait(seconds):
        raise TimeoutError(f"not done within {seconds:g} s")
    if errors:
        raise errors[0]

"""What is done beside the body of a test, in another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], object], pause_s: float) -> Iterator[None]:
    """Do something after every pause, until it returns something true or the body ends."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause_s) and not action():
            pass

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def done_once(condition: Callable[[], object], action: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as something is so; not any more at the body's end."""

    def done() -> bool:
        if reached := bool(condition()):
            action()
        return reached

    with repeated(done, 0.05):
        yield

"""Functions that run in turn, in an order that the test chooses: every interleaving of their steps can be had."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any


class Interleaving:
    """Runs functions in threads of which one runs at a time, from one `point` to its next.

    Args:
        choose: is given how many can go on, and says which of them does.
    """

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose, self._mine = choose, threading.local()
        self._arrived: queue.SimpleQueue[threading.Semaphore | None] = queue.SimpleQueue()

    def point(self) -> None:
        """Give others a turn; in a thread that is none of the functions', nothing."""
        gate: threading.Semaphore | None = getattr(self._mine, "gate", None)
        if gate is not None:
            self._arrived.put(gate)
            gate.acquire()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a point before it."""

        def pointed(*arguments: Any, **options: Any) -> Any:
            self.point()
            return function(*arguments, **options)

        return pointed

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what each of them returned or raised."""
        results: list[Any] = [None] * len(functions)

        def act(number: int) -> None:
            self._mine.gate = threading.Semaphore(0)
            self.point()
            try:
                results[number] = functions[number]()
            except Exception as error:
                results[number] = error
            self._arrived.put(None)

        waiting = []
        for number in range(len(functions)):
            threading.Thread(target=act, args=(number,), daemon=True).start()
            waiting.append(self._arrived.get(timeout=60))
        while waiting:
            gate = waiting.pop(self._choose(len(waiting)))
            assert gate is not None
            gate.release()
            if (arrived := self._arrived.get(timeout=60)) is not None:
                waiting.append(arrived)
        return results

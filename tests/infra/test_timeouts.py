from __future__ import annotations

import threading
import time

import pytest

from infra.timeouts import call_with_timeout


def test_a_call_that_hangs_holds_nobody_up() -> None:
    started, release = time.monotonic(), threading.Event()
    with pytest.raises(TimeoutError, match=r"not done within 0\.05 s"):
        call_with_timeout(0.05, release.wait)
    assert time.monotonic() - started < 5
    release.set()


def test_a_calls_error_is_its_callers() -> None:
    done: list[int] = []
    call_with_timeout(5, lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ValueError, match="it was wrong"):
        call_with_timeout(5, lambda: (_ for _ in ()).throw(ValueError("it was wrong")))

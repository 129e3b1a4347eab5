"""Replacing a local file on a condition, by processes that are stopped (SIGSTOP) before each of its system calls."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from itertools import count, product
from pathlib import Path

import pytest

from infra.storage import file_lock
from infra.storage.local import LocalStorage

CALLS = ("open", "fcntl.flock", "os.listdir", "os.scandir", "os.rename", "os.remove")
STEPS = (
    *("open lock", "flock", "list folder", "open temporary", "read", "rename", "sync folder"),
    *("remove temporary", "remove lock"),
)


class Stopped:
    """A process that replaces the file, stopped before a step."""

    def __init__(self, storage: LocalStorage, tag: str, value: bytes, step: int) -> None:
        self._reader, report = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _replace(storage, tag, value, step, report)
        os.close(report)
        assert os.WIFSTOPPED(os.waitpid(self._child, os.WUNTRACED)[1]), os.read(self._reader, 1000)

    def woken(self) -> bool:
        """Whether it says that it has replaced the file."""
        os.kill(self._child, signal.SIGCONT)
        os.waitpid(self._child, 0)
        said = os.read(self._reader, 1000)
        os.close(self._reader)
        assert said in (b"True", b"False"), said
        return said == b"True"


def _replace(storage: LocalStorage, tag: str, value: bytes, step: int, report: int) -> None:
    calls = count()

    def stop(event: str, arguments: tuple[object, ...]) -> None:
        if event in CALLS and next(calls) == step:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    sys.addaudithook(stop)
    try:
        os.write(report, repr(storage.write_if_match("lease", value, tag) is not None).encode())
    except BaseException as error:
        os.write(report, repr(error).encode())
    finally:
        os._exit(0)


def replace_beside(storage: LocalStorage, stopped_at: Sequence[int]) -> None:
    """Stop processes, replace the file, wake them: of all that had the tag one has replaced it, and nothing after."""
    storage.write("lease", b"first")
    tag = storage.read_with_etag("lease")[1]
    stopped = [Stopped(storage, tag, b"stopped %d" % i, step) for i, step in enumerate(stopped_at)]
    won = storage.write_if_match("lease", b"second", tag) is not None
    there, tag = storage.read_with_etag("lease")
    assert won == (there == b"second")
    assert storage.write_if_match("lease", b"third", tag) is not None
    assert [won, *(process.woken() for process in stopped)].count(True) == 1
    assert storage.read("lease") == b"third"
    assert [path.name for path in storage.root.iterdir()] == ["lease"]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    monkeypatch.setattr(file_lock, "LOCK_TERM_S", 0.1)
    return LocalStorage(tmp_path)


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_who_was_stopped_at_any_step_neither_holds_up_nor_outdoes_the_next(storage: LocalStorage, step: int) -> None:
    replace_beside(storage, [step])


def test_nor_do_two_of_them(storage: LocalStorage) -> None:
    for steps in product((1, 3, 5), repeat=2):
        replace_beside(storage, steps)

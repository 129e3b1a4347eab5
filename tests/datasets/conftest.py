from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shards import write_shards


@pytest.fixture
def end_children() -> Iterator[None]:
    """Leave no forked process behind."""
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three uneven shards, 137 labelled images."""
    return write_shards(tmp_path_factory.mktemp("shards"), [50, 64, 23])

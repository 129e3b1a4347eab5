"""What would run if something unpickled it, in each of the formats that hold a pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pickles import KINDS

Evil = Callable[[], bytes]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__.strip("_"))
def evil(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """A pickle that leaves the file `ran` if something unpickles it, in each of the formats that hold one."""
    data: bytes = request.param(tmp_path / "ran")
    return data


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path) -> object:
    yield
    assert not (tmp_path / "ran").exists()

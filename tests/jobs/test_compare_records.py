"""A comparison completes the record of a run that it finds, and needs none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from infra.storage.lease import LeaseError
from jobs.compare import _Compare
from jobs.recipes.solar_cells import demo_scratch
from pipeline.compare.config import CompareOptions, Comparison
from pipeline.compare.history import History
from pipeline.compare.runs import Planned, plan_runs
from tests.support.shards import write_shards

FOUND = History(
    variant="one",
    seed=0,
    name="one-s0",
    where="/runs/one-s0",
    fingerprint="f",
    evaluations=(),
    metrics={},
    samples=48,
    peak_bytes=7,
    machine="m",
)


def stopped() -> bool:
    return False


def completed() -> bool:
    return True


def held() -> bool:
    raise LeaseError("/runs/one-s0 is being trained by somebody")


def failed() -> bool:
    raise RuntimeError("one-s0 failed")


@pytest.mark.parametrize(
    ("train", "goes_on", "said"),
    [
        (completed, True, ""),
        (stopped, False, ""),
        (held, True, "note: its record is left as it is: /runs/one-s0 is being trained by somebody"),
        (failed, True, "note: its record is left as it is: one-s0 failed"),
    ],
)
def test_what_goes_wrong_with_a_record_is_said_and_no_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    train: Callable[[], bool],
    goes_on: bool,
    said: str,
) -> None:
    write_shards(tmp_path, [60])
    data = replace(demo_scratch().data, train=str(tmp_path), val=str(tmp_path))
    comparison = Comparison(
        name="c", question="?", variants={"one": replace(demo_scratch(), data=data)}, baseline="one"
    )
    (run,) = plan_runs(comparison, (0,), dry=True)
    compare = _Compare(Console(width=200), comparison, CompareOptions(), "")

    def trained(planned: Planned, parent: str) -> bool:
        assert (planned, parent) == (run, "parent")
        return train()

    monkeypatch.setattr(compare, "_train", trained)
    assert compare._completed(run, FOUND, "parent") is (FOUND if goes_on else None)
    assert said in capsys.readouterr().out

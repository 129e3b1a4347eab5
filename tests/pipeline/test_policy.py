from __future__ import annotations

from itertools import permutations

import pytest

from pipeline.policy import Decision, Progress, Request, decide

NOW = Progress(cursor=48, stage=1, stage_start=24, stage_stop=96, total=96, samples_per_epoch=24, num_workers=2)


def test_without_requests_a_run_goes_on() -> None:
    assert decide(NOW, []) is Decision.CONTINUE


@pytest.mark.parametrize(("stage", "expected"), [(0, Decision.CONTINUE), (1, Decision.NEXT_STAGE)])
def test_an_advance_is_for_the_stage_in_which_it_was_asked(stage: int, expected: Decision) -> None:
    assert decide(NOW, [Request(Decision.NEXT_STAGE, stage)]) is expected


@pytest.mark.parametrize("order", permutations((Decision.STOP, Decision.NEXT_STAGE, Decision.CHECKPOINT)))
def test_the_strongest_request_wins_in_any_order(order: tuple[Decision, ...]) -> None:
    assert decide(NOW, [Request(decision, 1) for decision in order]) is Decision.STOP
    weaker = [Request(decision, 1) for decision in order if decision is not Decision.STOP]
    assert decide(NOW, weaker) is Decision.NEXT_STAGE

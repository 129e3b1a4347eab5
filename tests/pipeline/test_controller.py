from __future__ import annotations

import pytest

from pipeline.controller import Segment, StageController, segments
from pipeline.policy import Decision, Progress
from pipeline.stages import TrainingStage


def stage(num_workers: int = 0) -> TrainingStage:
    return TrainingStage(image_size=32, epochs=1, batch_size=24, num_workers=num_workers)


def progress(cursor: int, index: int, stages: int = 3) -> Progress:
    return Progress(
        cursor=cursor,
        stage=index,
        stage_start=index * 120,
        stage_stop=(index + 1) * 120,
        total=stages * 120,
        samples_per_epoch=120,
        num_workers=2,
    )


class FakeGroup:
    """Stands for a worker group: goes through its stages, asks for decisions, does what a test injects at a cursor."""

    def __init__(self, inject: dict[int, object] | None = None) -> None:
        self.inject, self.fitted, self.decisions = inject or {}, list[Segment](), list[tuple[int, Decision]]()
        self.controller: StageController

    def __call__(self, segment: Segment) -> None:
        self.fitted.append(segment)
        if self.controller.joined(0):
            return
        index = segment.first
        cursor = index * 120
        while index <= segment.last:
            cursor += 24
            if callable(action := self.inject.get(cursor)):
                action(self.controller)
            decision = self.controller.decide(progress(cursor, index))
            self.decisions.append((cursor, decision))
            if decision is Decision.STOP or self.controller.status()["phase"] == "failed":
                return
            if decision is Decision.NEXT_STAGE or cursor >= (index + 1) * 120:
                index += 1
                cursor = index * 120


def run(group: FakeGroup, stages: tuple[TrainingStage, ...]) -> dict[str, object]:
    group.controller = StageController(stages, 2, group)
    return group.controller.run()


def test_neighbours_of_equal_worker_count_share_a_segment() -> None:
    assert segments((stage(), stage(), stage()), 2) == [Segment(0, 2, 2)]
    assert segments((stage(1), stage(2), stage(), stage(4)), 2) == [
        Segment(0, 0, 1),
        Segment(1, 2, 2),
        Segment(3, 3, 4),
    ]


def test_a_run_goes_through_all_segments() -> None:
    group = FakeGroup()
    status = run(group, (stage(1), stage(2), stage(2)))
    assert [s.num_workers for s in group.fitted] == [1, 2]
    assert status["phase"] == "finished"
    assert status["progress"]["cursor"] == 360  # type: ignore[index]
    assert status["recoveries"] == 0


def test_finished_segments_are_not_started_again() -> None:
    group = FakeGroup()
    group.controller = StageController((stage(1), stage(2), stage(3)), 2, group, first_stage=1)
    group.controller.run()
    assert [s.num_workers for s in group.fitted] == [2, 3]


def test_advance_is_carried_out_once_at_the_next_decision_point() -> None:
    group = FakeGroup({48: lambda controller: controller.advance()})
    run(group, (stage(), stage(), stage()))
    advanced = [cursor for cursor, decision in group.decisions if decision is Decision.NEXT_STAGE]
    assert advanced == [48]
    assert (144, Decision.CONTINUE) in group.decisions  # the second stage has its full length


def test_advance_is_repeated_when_a_restart_comes_back_to_the_stage() -> None:
    controller = StageController((stage(), stage()), 2, lambda segment: None)
    controller.decide(progress(24, 0))
    controller.advance()
    assert controller.decide(progress(48, 0)) is Decision.NEXT_STAGE
    assert controller.decide(progress(24, 0)) is Decision.NEXT_STAGE  # killed before the checkpoint: decided again
    assert controller.decide(progress(144, 1)) is Decision.CONTINUE


def test_stop_ends_the_run_and_starts_no_other_segment() -> None:
    group = FakeGroup({72: lambda controller: controller.stop()})
    status = run(group, (stage(1), stage(2)))
    assert status["phase"] == "stopped"
    assert len(group.fitted) == 1


def test_an_error_that_cannot_be_cured_by_trying_again_ends_the_run() -> None:
    group = FakeGroup({72: lambda controller: controller.failed("shard 3 is damaged")})
    with pytest.raises(RuntimeError, match="shard 3 is damaged"):
        run(group, (stage(1), stage(2)))
    assert len(group.fitted) == 1
    assert group.controller.joined(1) == "shard 3 is damaged"  # what a restarted group is told


class FailingGroup(FakeGroup):
    """A group that Ray Train gives up, as it does with one whose ranks all ended with an error."""

    def __call__(self, segment: Segment) -> None:
        super().__call__(segment)
        raise OSError("Traceback of all ranks\nsocket closed")


@pytest.mark.parametrize("said", ["shard 3 is damaged", ""])
def test_a_run_that_fails_says_why_in_one_line_and_its_record_ends(said: str) -> None:
    group = FailingGroup({72: lambda controller: said and controller.failed(said)})
    ended: list[str] = []
    group.controller = StageController((stage(),), 2, group, record_failure=lambda: ended.append("FAILED"))
    with pytest.raises(RuntimeError) as error:
        group.controller.run()
    assert str(error.value) == group.controller.error() == (said or "socket closed")
    assert ended == ["FAILED"]
    assert group.controller.status()["phase"] == "failed"


def test_a_record_that_cannot_be_closed_does_not_hide_why_the_run_failed() -> None:
    def away() -> None:
        raise OSError("no answer")

    group = FailingGroup()
    group.controller = StageController((stage(),), 2, group, record_failure=away)
    with pytest.raises(RuntimeError, match="socket closed"):
        group.controller.run()
    assert "no answer" in group.controller.status()["notes"][-1]


def test_a_run_that_was_taken_over_ends_and_leaves_the_record_alone() -> None:
    group = FakeGroup({72: lambda controller: controller.lost("taken over by another submission")})
    ended: list[str] = []
    group.controller = StageController((stage(), stage()), 2, group, record_failure=lambda: ended.append("FAILED"))
    with pytest.raises(RuntimeError, match="taken over"):
        group.controller.run()
    assert group.decisions[-1] == (72, Decision.STOP)
    assert group.controller.taken_over()
    assert ended == []


def test_advance_before_the_first_decision_of_a_resumed_run_is_for_the_stage_it_resumes_in() -> None:
    controller = StageController((stage(), stage(), stage()), 2, lambda segment: None, first_stage=1)
    assert controller.advance().endswith("(stage 2)")
    assert controller.decide(progress(144, 1)) is Decision.NEXT_STAGE


def test_status_before_the_first_decision() -> None:
    controller = StageController((stage(),), 2, lambda segment: None)
    assert controller.status()["phase"] == "starting"
    assert controller.status()["progress"] is None

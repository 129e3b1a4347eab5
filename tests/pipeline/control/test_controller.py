from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from infra.storage.lease import KEY, Lease
from infra.storage.open import open_storage
from pipeline.checkpoint.state import TrainState
from pipeline.control.controller import StageController
from pipeline.control.journal import JOURNAL_FILE, Journal, JournalWriter, stored_rows
from pipeline.control.node_requests import NodesAhead
from pipeline.control.run_status import CheckpointStatus
from pipeline.schedule.decisions import (
    Checkpoint,
    DecisionRecord,
    ExtendStage,
    NewGroup,
    NextStage,
    Pause,
    Resume,
    SetField,
    Stop,
    records_of,
)
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import AdaptiveConfig, Segment, StageSpan, segments
from tests.support.groups import EPOCH, FakeGroup, KilledError, advance, ask, extend, no_group, plan_of, stage


def progress(cursor: int, index: int, stages: int = 3, workers: tuple[int, ...] = ()) -> Progress:
    return Progress(
        cursor=cursor,
        stage=index,
        spans=tuple(
            StageSpan(number, stage(*workers[number : number + 1]), number * EPOCH, (number + 1) * EPOCH)
            for number in range(stages)
        ),
        samples_per_epoch=EPOCH,
        num_workers=2,
        metrics={"train/images_per_s": 24.0},
    )


# Segments and the run ------------------------------------------------------------------------------------------------


def test_neighbours_of_equal_worker_count_share_a_segment() -> None:
    assert segments((stage(), stage(), stage()), 2) == [Segment(0, 2, 2)]
    assert segments((stage(1), stage(2), stage(), stage(4)), 2) == [
        Segment(0, 0, 1),
        Segment(1, 2, 2),
        Segment(3, 3, 4),
    ]


def test_a_run_goes_through_all_segments() -> None:
    group = FakeGroup()
    status = group.run((stage(1), stage(2), stage(2)))
    assert [s.num_workers for s in group.fitted] == [1, 2]
    assert status.phase == "finished"
    assert status.progress.cursor == 360
    assert status.recoveries == 0
    assert group.told == [(120, "next stage"), (240, "next stage"), (360, "next stage")]


def test_finished_segments_are_not_started_again() -> None:
    group = FakeGroup()
    done = NextStage(reason="its length is reached")
    group.saved = TrainState(
        cursor=120, stage_starts=[0, 120], stage_results=[{}, {}], decisions=[DecisionRecord(120, 0, done).entry()]
    )
    group.run((stage(1), stage(2), stage(3)), first_stage=1, journal=Journal([DecisionRecord(120, 0, done)]))
    assert [s.num_workers for s in group.fitted] == [2, 3]
    assert group.told == [(240, "next stage"), (360, "next stage")]


# Operators -----------------------------------------------------------------------------------------------------------


def test_advance_is_carried_out_once_and_the_rest_is_shared_out() -> None:
    group = FakeGroup({48: advance()})
    group.run((stage(), stage(), stage()))
    assert group.told == [(48, "next stage"), (216, "next stage"), (360, "next stage")]
    assert group.saved.decisions[0]["asked_by"] == "ann@here"
    saved = FakeGroup({48: advance()})
    saved.run((stage(), stage(), stage()), AdaptiveConfig(unused="saved"))
    assert saved.told == [(48, "next stage"), (168, "next stage"), (288, "next stage")]


def test_an_extension_at_the_stages_very_end_keeps_it_going() -> None:
    group = FakeGroup({120: extend(1)})
    group.run((stage(), stage()))
    assert group.told == [(120, "extend by 1 epochs"), (240, "next stage"), (360, "next stage")]


def test_all_that_was_asked_for_is_carried_out_and_an_advance_asked_twice_ends_one_stage() -> None:
    slower = SetField(name="lr_scale", value=0.5)
    group = FakeGroup({48: ask(NextStage(), Checkpoint(), slower, NextStage(), Checkpoint())})
    group.run((stage(), stage(), stage()))
    assert group.told[:4] == [(48, "set lr_scale to 0.5"), (48, "next stage"), (48, "checkpoint"), (216, "next stage")]
    plain = FakeGroup({48: advance()})
    plain.run((stage(), stage(), stage()))
    assert {cursor: group.rates[cursor] / plain.rates[cursor] for cursor in (24, 48, 96)} == {24: 1.0, 48: 0.5, 96: 0.5}


def test_stop_ends_the_run_and_starts_no_other_segment() -> None:
    group = FakeGroup({72: ask(Stop())})
    status = group.run((stage(1), stage(2)))
    assert status.phase == "stopped"
    assert len(group.fitted) == 1
    assert "has no effect" in group.controller.ask(Checkpoint())


def test_a_stop_whose_group_dies_before_it_ends_still_stops_the_run() -> None:
    group = FakeGroup({72: ask(Stop()), 48: ask(Checkpoint())})
    original = group.controller_ended = []  # type: ignore[attr-defined]

    def train_twice(segment: Segment) -> None:
        if not original:
            original.append(1)
            group.controller.join(0)
            group.controller.ask(Stop())
            assert isinstance(group.controller.decide(progress(24, 0)).decisions[0], Stop)
        assert isinstance(
            group.controller.decide(progress(24, 0)).decisions[0], Stop
        )  # the next group's first decision point

    group.controller = StageController(plan_of(stage()), train_twice)
    assert group.controller.run().phase == "stopped"


def test_a_pause_holds_the_run_and_what_may_wait_until_it_is_resumed() -> None:
    group = FakeGroup({48: ask(Pause())})
    asked = iter(
        [advance(), ask(SetField(name="lr_scale", value=0.5), Checkpoint(), Pause()), ask(Resume()), lambda _: None]
    )
    phases: list[str] = []

    def happens(progress: object) -> None:
        original(progress)  # type: ignore[arg-type]
        if group.controller.status().phase == "paused":
            next(asked)(group.controller)
            phases.append(str(list(group.controller.status().pending)))

    original, group._happens = group._happens, happens  # type: ignore[method-assign]
    group.run((stage(), stage()))
    assert group.told == [
        (48, "pause"),
        (48, "set lr_scale to 0.5"),
        (48, "checkpoint"),
        (48, "resume"),
        (72, "next stage"),  # held meanwhile
        (240, "next stage"),
    ]
    assert phases[0] == "['next stage (asked by ann@here)']"


def test_a_pause_survives_a_killed_group_also_without_its_checkpoint() -> None:
    group = FakeGroup({48: ask(Pause())}, loses_checkpoints_from=48)
    looks: list[int] = []

    def happens(progress: object) -> None:
        original(progress)  # type: ignore[arg-type]
        if progress.paused:  # type: ignore[attr-defined]
            looks.append(progress.state.cursor)  # type: ignore[attr-defined]
            if len(looks) == 1:
                raise KilledError
            group.controller.ask(Resume())

    original, group._happens = group._happens, happens  # type: ignore[method-assign]
    status = group.run((stage(),))
    assert looks == [48, 24]  # paused again at the first decision point after the restart from cursor 0
    assert status.phase == "finished"


def test_a_run_that_was_resumed_stays_so_when_its_group_is_lost_before_the_checkpoint() -> None:
    group = FakeGroup({24: ask(Pause()), 48: KilledError()})

    def resume_at_once(controller: StageController) -> None:
        group.loses = 0  # from here on no checkpoint is written
        ask(Resume())(controller)

    group.inject |= {24: ask(Pause())}
    paused: list[int] = []
    decide = StageController.decide

    def watched(controller: StageController, now: Progress) -> tuple[object, ...]:
        if now.paused and not paused:
            paused.append(now.cursor)
            resume_at_once(controller)
        return decide(controller, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageController, "decide", watched)
        status = group.run((stage(),))
    assert group.told == [(24, "pause"), (24, "resume"), (24, "resume"), (120, "next stage")]
    assert status.phase == "finished"


def test_a_pause_that_is_taken_back_before_it_begins_is_none() -> None:
    group = FakeGroup({48: ask(Pause(), Resume())})
    group.run((stage(),))
    assert group.told == [(120, "next stage")]


def test_what_is_asked_for_a_stage_that_a_run_went_back_from_waits_for_it() -> None:
    group = FakeGroup(loses_checkpoints_from=24)
    group.inject = {120: advance(), 144: advance(), 168: KilledError()}
    # Asked right before the decision that ends stage 1, the first one means stage 1; the second one stage 2.
    group.run((stage(), stage(), stage()))
    assert [words for _, words in group.told].count("next stage") == 2 + 3


def test_what_comes_too_late_is_said() -> None:
    controller = StageController(plan_of(stage(), stage()), no_group)
    controller.decide(progress(24, 0, 2))
    controller.ask(NextStage(asked_by="ann@here"))
    controller.decide(progress(144, 1, 2))
    assert controller.status().notes == ("next stage, asked by ann@here, came too late: its stage has ended",)


def test_the_answer_comes_at_once_and_says_when() -> None:
    controller = StageController(plan_of(stage(), stage(), stage(), first_stage=1), no_group)
    assert controller.ask(NextStage()) == "next stage: at the next decision point, after the start (stage 2 of 3)"
    assert controller.ask(Resume()) == "the run isn't paused"
    assert [one.kind for one in controller.decide(progress(144, 1)).decisions] == ["next_stage"]
    controller.decide(progress(168, 1))
    assert "in about 1 s" in controller.ask(Stop())


# Repeated decisions --------------------------------------------------------------------------------------------------


def test_a_killed_group_repeats_its_decisions_at_the_same_cursors() -> None:
    undisturbed = FakeGroup({48: advance(), 96: ask(SetField(name="lr_scale", value=0.5))})
    undisturbed.run((stage(), stage(), stage()))
    killed = FakeGroup(
        {48: advance(), 96: ask(SetField(name="lr_scale", value=0.5)), 144: KilledError()}, loses_checkpoints_from=24
    )
    status = killed.run((stage(), stage(), stage()))
    assert status.recoveries == 1
    assert killed.told == [*undisturbed.told[:2], *undisturbed.told]  # all of it twice, from cursor 0
    assert killed.rates == undisturbed.rates
    assert killed.saved == undisturbed.saved or strip(killed.saved) == strip(undisturbed.saved)


def strip(state: TrainState) -> list[tuple[int, int, str]]:
    return [(record.cursor, record.stage, record.decision.words) for record in records_of(state.decisions)]


def test_a_run_that_was_killed_with_its_controller_repeats_them_from_the_journal(tmp_path: object) -> None:
    storage = open_storage(str(tmp_path))
    first = FakeGroup({48: advance(), 96: ask(Stop())}, loses_checkpoints_from=24)
    lease = Lease(storage)
    lease.take()
    writer = JournalWriter(storage, lease)
    first.run((stage(), stage()), journal=Journal(changed=writer))
    deadline = time.monotonic() + 30
    while [row.cursor for row in stored_rows(storage, [])] != [48]:  # before, it is there as asked for
        assert time.monotonic() < deadline
        time.sleep(0.01)
    again = FakeGroup()  # nothing of the first one's checkpoints was written
    again.run((stage(), stage()), journal=Journal(stored_rows(storage, [])))
    assert again.told == [(48, "next stage"), (240, "next stage")]
    assert again.decisions[0][1] == first.decisions[0][1]  # who asked, and when


def test_what_a_controller_was_asked_for_before_it_was_lost_is_carried_out_by_the_next_one(tmp_path: object) -> None:
    storage = open_storage(str(tmp_path))
    kept: list[DecisionRecord] = []

    def keep(rows: list[DecisionRecord]) -> None:
        kept[:] = rows

    def asked_and_lost(controller: StageController) -> None:
        ask(SetField(name="lr_scale", value=0.5), ExtendStage(epochs=1), Stop())(controller)
        raise RuntimeError("lost")

    first = FakeGroup({48: asked_and_lost})
    with pytest.raises(RuntimeError, match="lost"):
        first.run((stage(), stage()), journal=Journal(changed=keep))
    assert first.told == []
    storage.write(JOURNAL_FILE, json.dumps([row.entry() for row in kept]).encode())
    again = FakeGroup()
    again.run((stage(), stage()), journal=Journal(stored_rows(storage, []), keep))
    assert again.told == [
        (24, "set lr_scale to 0.5"),
        (24, "extend by 1 epochs"),
        (240, "next stage"),
        (360, "next stage"),
    ]
    assert again.decisions[0][1].asked_by == "ann@here"
    assert [row.cursor for row in kept] == [24, 24, 240, 360]  # nothing is left asked for


def test_a_stage_that_gets_longer_while_decisions_are_repeated_does_not_end_as_before() -> None:
    group = FakeGroup({96: advance(), 144: KilledError()}, loses_checkpoints_from=24)

    def when_restarted(controller: StageController) -> None:
        group.inject[48] = extend(1)

    group.inject[120] = when_restarted
    group.run((stage(), stage()))
    assert group.told == [
        (96, "next stage"),
        (48, "extend by 1 epochs"),
        (240, "next stage"),  # the newest word counts: the stage doesn't end at 96 again
        (360, "next stage"),
    ]


# Rules ---------------------------------------------------------------------------------------------------------------


def test_a_stage_ends_on_its_plateau_and_the_last_one_gets_what_was_left() -> None:
    rules = AdaptiveConfig(plateau=True, metric="val/loss", better="lowest", patience=2, min_epochs=2)
    group = FakeGroup(val_loss=lambda cursor: 1.0)
    group.run((stage(epochs=6), stage(epochs=6)), rules)
    assert group.told == [(360, "next stage"), (1440, "next stage")]
    assert "val/loss has not improved on 1 for 2 evaluations" in group.decisions[0][1].reason
    better = FakeGroup(val_loss=lambda cursor: 1.0 / cursor)
    better.run((stage(epochs=6), stage(epochs=6)), rules)
    assert better.told == [(720, "next stage"), (1440, "next stage")]
    saved = FakeGroup()
    saved.run((stage(epochs=6), stage(epochs=6)), AdaptiveConfig(**{**as_values(rules), "unused": "saved"}))
    assert saved.told == [(360, "next stage"), (720, "next stage")]


def as_values(rules: AdaptiveConfig) -> dict:  # type: ignore[type-arg]
    return {name: getattr(rules, name) for name in AdaptiveConfig.__dataclass_fields__}


def test_patience_may_change_while_a_stage_is_on() -> None:
    rules = AdaptiveConfig(plateau=True, metric="val/loss", better="lowest", patience=5, min_epochs=1)
    group = FakeGroup({264: ask(SetField(name="patience", value=1))})
    group.run((stage(epochs=6), stage(epochs=1)), rules)
    assert group.told[:2] == [(264, "set patience to 1"), (288, "next stage")]


def test_regularization_follows_the_gap_and_a_killed_run_repeats_it() -> None:
    rules = AdaptiveConfig(closed_loop=True, gap=0.0, gain=1.0)
    stages = tuple(stage(randaugment_magnitude=magnitude) for magnitude in (0.0, 5.0, 10.0))
    group = FakeGroup(val_loss=lambda cursor: 1.3)
    group.run(stages, rules)
    values = [record.decision.values for record in records_of(group.saved.decisions)]  # type: ignore[attr-defined]
    assert [round(value.get("randaugment_magnitude", -1), 3) for value in values] == [3.0, 6.0, -1]
    assert "0.00 -> 0.30" in group.decisions[0][1].reason
    killed = FakeGroup({192: KilledError()}, val_loss=lambda cursor: 1.3, loses_checkpoints_from=120)
    killed.run(stages, rules)
    assert strip(killed.saved) == strip(group.saved)
    assert [r.decision.values for r in records_of(killed.saved.decisions)] == values  # type: ignore[attr-defined]


# Faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(24, 361, 24))
def test_a_worker_lost_at_any_step_changes_nothing(at: int) -> None:
    whole = FakeGroup({72: advance()})
    whole.run((stage(), stage(), stage()))
    faulty = FakeGroup({72: advance(), at: KilledError()} if at != 72 else {72: KilledError(), 48: advance()})
    status = faulty.run((stage(), stage(), stage()))
    assert status.recoveries == 1
    if at != 72:
        assert strip(faulty.saved) == strip(whole.saved)
        assert faulty.rates == whole.rates


def test_an_error_that_cannot_be_cured_by_trying_again_ends_the_run() -> None:
    group = FakeGroup({72: lambda controller: controller.failed("shard 3 is damaged")})
    with pytest.raises(RuntimeError, match="shard 3 is damaged"):
        group.run((stage(1), stage(2)))
    assert len(group.fitted) == 1
    assert group.controller.join(1).error == "shard 3 is damaged"  # what a restarted group is told


class FailingGroup(FakeGroup):
    """A group that Ray Train gives up, as it does with one whose ranks all ended with an error."""

    def __call__(self, segment: Segment) -> None:
        super().__call__(segment)
        raise OSError("Traceback of all ranks\nsocket closed")


@pytest.mark.parametrize("said", ["shard 3 is damaged", ""])
def test_a_run_that_fails_says_why_in_one_line_and_its_record_ends(said: str) -> None:
    group = FailingGroup({72: lambda controller: said and controller.failed(said)})
    ended: list[str] = []
    with pytest.raises(RuntimeError) as error:
        group.run((stage(),), record_failure=lambda uri: ended.append("FAILED"))
    assert str(error.value) == group.controller.error() == (said or "socket closed")
    assert ended == ["FAILED"]
    assert group.controller.status().phase == "failed"


def test_a_record_that_cannot_be_closed_does_not_hide_why_the_run_failed() -> None:
    def away(uri: str) -> None:
        raise OSError("no answer")

    group = FailingGroup()
    with pytest.raises(RuntimeError, match="socket closed"):
        group.run((stage(),), record_failure=away)
    assert "no answer" in group.controller.status().notes[-1]


def test_a_failed_runs_record_ends_where_operators_said_that_it_is_kept() -> None:
    group, ended, answers = FailingGroup(), list[str](), list[str]()
    group.inject[72] = lambda controller: answers.append(controller.track("http://127.0.0.1:9", "ann@here"))
    with pytest.raises(RuntimeError, match="socket closed"):
        group.run((stage(),), record_failure=ended.append)
    assert ended == ["http://127.0.0.1:9"]
    assert answers[0].startswith("tracking continues at http://127.0.0.1:9 from the next decision point")
    assert "tracking continues at http://127.0.0.1:9, asked by ann@here" in group.controller.status().notes
    assert group.saved.decisions[0]["decision"] == "next_stage"  # and no other one
    assert "the run has failed" in group.controller.track("http://127.0.0.1:8")


def test_a_run_that_was_taken_over_ends_and_leaves_the_record_alone() -> None:
    group = FakeGroup({72: lambda controller: controller.lost("taken over by another submission")})
    ended: list[str] = []
    with pytest.raises(RuntimeError, match="taken over"):
        group.run((stage(), stage()), record_failure=lambda uri: ended.append("FAILED"))
    assert group.told[-1] == (72, "stop")
    assert group.controller.decide(progress(96, 0)).taken_over
    assert ended == []


def test_a_run_that_fails_before_it_knows_of_its_successor_leaves_the_record_alone(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lease = Lease(storage)
    lease.take()
    lease.rest()  # as if its renewal were held up

    def fail(controller: StageController) -> None:
        storage.delete(KEY)
        Lease(storage).take()
        controller.failed("the lease was lost")

    group, ended = FailingGroup({72: fail}), list[str]()
    with pytest.raises(RuntimeError, match="the lease was lost"):
        group.run((stage(),), lease=lease, record_failure=lambda uri: ended.append("FAILED"))
    assert ended == []
    assert "taken over by another submission" in group.controller.status().notes[-1]


def test_out_of_memory_is_told_to_the_next_group_once() -> None:
    controller = StageController(plan_of(stage()), no_group)
    for _ in range(2):  # two ranks meet it
        controller.ran_out_of_memory(1, 48)
    assert controller.join(0).out_of_memory == ((1, 48),)
    assert "48 samples" in controller.status().notes[0]


# The cluster's shape -------------------------------------------------------------------------------------------------


def test_a_group_that_may_grow_ends_with_a_checkpoint_and_goes_on() -> None:
    group = FakeGroup({48: lambda controller: [controller.on_capacity(1, 2), controller.on_capacity(1, 2)]})
    status = group.run((stage((1, 2)),))  # type: ignore[arg-type]
    assert group.told == [(48, "new group"), (120, "next stage")]
    assert len(group.fitted) == 2
    assert status.recoveries == 0


def test_a_group_whose_node_leaves_ends_with_a_checkpoint_and_goes_on() -> None:
    group = FakeGroup({48: lambda controller: controller.on_node_draining("0123456789abcdef")})
    status = group.run((stage((1, 2)),))  # type: ignore[arg-type]
    assert group.told == [(48, "new group"), (120, "next stage")]
    assert any("node 01234567 is draining" in note for note in status.notes)


def test_a_node_that_leaves_while_the_run_is_paused_is_left_and_the_run_stays_paused() -> None:
    group = FakeGroup({48: ask(Pause())})
    asked = iter([lambda controller: controller.on_node_draining("0123456789abcdef"), lambda _: None, ask(Resume())])

    def happens(progress: object) -> None:
        original(progress)  # type: ignore[arg-type]
        if progress.paused:  # type: ignore[attr-defined]
            next(asked)(group.controller)

    original, group._happens = group._happens, happens  # type: ignore[method-assign]
    status = group.run((stage((1, 2)),))  # type: ignore[arg-type]
    assert group.told == [(48, "pause"), (48, "new group"), (48, "resume"), (120, "next stage")]
    assert status.phase == "finished"


def test_the_next_segments_nodes_are_asked_for_ahead_and_again_before_the_request_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Segment, int]] = []
    there = threading.Event()

    def ask_nodes(segment: Segment, num_workers: int) -> None:
        asked.append((segment, num_workers))
        there.set()

    plan = plan_of(stage(2), stage(8))
    controller = StageController(plan, no_group, nodes_ahead=NodesAhead(plan.segments, ask_nodes, 3.0))
    controller.join(0)
    controller.decide(progress(24, 0, 2, (2, 8)))  # 96 samples at 24 a second: 4 s to go
    assert not there.wait(0.05)
    controller.decide(progress(48, 0, 2, (2, 8)))
    assert there.wait(5)
    controller.decide(progress(72, 0, 2, (2, 8)))
    assert asked == [(Segment(1, 1, 8), 2)]
    there.clear()
    monkeypatch.setattr("pipeline.control.node_requests.ASK_AGAIN_S", 0.0)
    controller.decide(progress(96, 0, 2, (2, 8)))
    assert there.wait(5)
    assert asked == [(Segment(1, 1, 8), 2)] * 2


# Status --------------------------------------------------------------------------------------------------------------


def test_status_of_a_run_that_goes_on_tells_the_checkpoint_that_it_goes_on_from() -> None:
    controller = StageController(plan_of(stage(), stage(), stage(), first_stage=2), no_group)
    controller.join(0, "node")
    controller.on_resume("s3://runs/one", 144, 1)  # the newest one was damaged
    assert controller.status().checkpoint == CheckpointStatus(uri="s3://runs/one", cursor=144, saved_s=None, age_s=None)
    assert controller.ask(NextStage()).endswith("(stage 2 of 3)")
    controller.on_resume("s3://runs/one", 120, 1, time.time() - 90)  # by another submission
    assert controller.status().checkpoint.age_s >= 90
    controller.saved("s3://runs/one/checkpoints/168", 168)
    controller.on_resume("s3://runs/one", 168, 1)
    assert controller.status().checkpoint.age_s >= 0


def test_status_before_the_first_decision() -> None:
    controller = StageController(plan_of(stage(), name="fake"), no_group)
    status = controller.status()
    assert (status.run.name, status.phase, status.progress, status.left_s) == ("fake", "starting", None, ())


def test_status_tells_the_workers_the_checkpoint_and_the_time_that_is_left() -> None:
    controller = StageController(plan_of(stage(), stage(), stage()), no_group)
    for rank in range(3):
        controller.join(rank, f"node-{rank // 2}")
        controller.report(rank, 48 if rank != 1 else 24, wait_share=0.1 * rank)
    controller.saved("runs/fake/checkpoints/24", 24)
    controller.decide(progress(48, 0))
    status = controller.status()
    assert status.workers.count == 3
    assert status.workers.nodes == 2
    assert status.workers.quietest.rank == 1
    assert status.workers.waits_most.rank == 2
    assert status.checkpoint.cursor == 24
    assert 0 <= status.checkpoint.age_s < 60
    assert status.left_s == (3.0, 5.0, 5.0)  # at 24 images a second
    controller.join(0, "node-9")  # another group: the old one's workers are forgotten
    assert controller.status().workers.count == 1


def test_the_time_left_counts_pixels_and_workers() -> None:
    spans = (
        StageSpan(0, stage(2, image_size=32), 0, 240),
        StageSpan(1, stage(4, image_size=64), 240, 480),
    )
    now = Progress(
        cursor=120, stage=0, spans=spans, samples_per_epoch=120, num_workers=2,
        stage_results=({"samples": 120, "train_s": 8.0, "eval_s": 2.0},),
    )  # fmt: skip
    controller = StageController(plan_of(stage(), stage()), no_group)
    controller.decide(now)
    assert controller.status().left_s == (10.0, 240 / 12 * 4 / 2)  # four times the pixels, twice the workers


def test_a_new_group_is_no_decision_of_an_operator() -> None:
    controller = StageController(plan_of(stage()), no_group)
    controller.on_capacity(1, 2)
    controller.join(0)  # it started with more already
    assert controller.decide(progress(24, 0)).decisions == ()
    assert not any(isinstance(one, NewGroup) for one in controller.decide(progress(48, 0)).decisions)


class LostAtItsEnd(FakeGroup):
    """Is lost once it was told to stop, with the checkpoint that came with it: Ray Train starts another one."""

    def __call__(self, segment: Segment) -> None:
        super().__call__(segment)
        if self.loses < 10**9:
            self.loses = 10**9
            super().__call__(segment)


def test_a_stop_that_is_carried_out_again_leaves_out_no_decision_before_it() -> None:
    group = LostAtItsEnd({72: ask(Checkpoint()), 96: advance(), 144: ask(Stop())}, loses_checkpoints_from=96)
    assert group.run([stage(), stage()]).phase == "stopped"
    assert [(at, one.kind) for at, one in group.decisions if at >= 96] == [
        *((96, "next_stage"), (144, "stop")),
        *((96, "next_stage"), (120, "stop")),
    ]
    assert group.saved.stage_starts == [0, 96]

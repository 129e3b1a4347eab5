from __future__ import annotations

import io

from rich.console import Console

from jobs.common.display import progress_line
from jobs.common.follow import Follower
from jobs.recipes.solar_cells import demo_scratch
from pipeline.control.controller import StageController
from pipeline.control.status import MAX_NOTES
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from tests.support.groups import no_group, plan_of


def test_every_note_is_shown_once_also_beyond_those_that_the_controller_keeps() -> None:
    controller = StageController(plan_of(*demo_scratch().stages), no_group)
    out = io.StringIO()
    follower = Follower(Console(file=out, width=120), demo_scratch(), controller, None)
    for number in range(3 * MAX_NOTES):
        controller.note(f"line {number}")
        controller.note(f"line {number}")  # said again
        if number % 40 == 0:
            follower._show_notes(controller.status())
    follower._show_notes(controller.status())
    assert out.getvalue().splitlines() == [f"note: line {number}" for number in range(3 * MAX_NOTES)]


def test_the_line_of_a_run_that_was_submitted_while_paused_says_what_is_known() -> None:
    controller = StageController(plan_of(*demo_scratch().stages), no_group)
    spans = tuple(
        StageSpan(index, stage, index * 120, index * 120 + 120) for index, stage in enumerate(demo_scratch().stages)
    )
    now = Progress(cursor=24, stage=0, spans=spans, samples_per_epoch=120, num_workers=2, paused=True)
    controller.join(0)
    controller.decide(now)
    assert progress_line(demo_scratch(), controller.status()).startswith("stage 1/4 | 64 px | epoch 0.2/4 | paused")

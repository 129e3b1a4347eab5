from __future__ import annotations

import io

from rich.console import Console

from jobs.display import Follower
from jobs.recipes import demo
from pipeline.controller import StageController
from pipeline.status import MAX_NOTES


def test_every_note_is_shown_once_also_beyond_those_that_the_controller_keeps() -> None:
    controller = StageController(demo().stages, 2, lambda segment: None)
    out = io.StringIO()
    follower = Follower(Console(file=out, width=120), demo(), controller, None)
    for number in range(3 * MAX_NOTES):
        controller.note(f"line {number}")
        controller.note(f"line {number}")  # said again
        if number % 40 == 0:
            follower._show_notes(controller.status())
    follower._show_notes(controller.status())
    assert out.getvalue().splitlines() == [f"note: line {number}" for number in range(3 * MAX_NOTES)]

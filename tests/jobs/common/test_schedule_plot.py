from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jobs.common.schedule_plot import WIDTH, schedule_plot
from jobs.recipes.solar_cells import demo_scratch
from pipeline.schedule.stages import TrainingStage


def test_each_value_stands_where_its_stage_begins() -> None:
    size, randaugment, mixup, dropout, axis = schedule_plot(demo_scratch().stages)
    quarter, margin = WIDTH // 4, axis.index("0")
    for line, values in ((size, ("64", "80", "112", "128")), (randaugment, "0123"), (axis, ("0", "6", "12", "18"))):
        for index, value in enumerate(values):
            assert line[margin + index * quarter :].startswith(value)
    assert size.endswith("█")
    assert (mixup.split()[0], dropout[:7]) == ("Mixup", "dropout")
    assert not any("CutMix" in line for line in schedule_plot(demo_scratch().stages))  # no stage has it


def test_a_terminal_without_blocks_gets_ascii() -> None:
    assert all(line.isascii() for line in schedule_plot(demo_scratch().stages, encoding="ascii"))


@given(st.lists(st.tuples(st.floats(0.01, 500), st.integers(8, 512), st.floats(0, 0.9)), min_size=1, max_size=60))
def test_any_schedule_can_be_drawn(rows: list[tuple[float, int, float]]) -> None:
    stage = TrainingStage(image_size=8, epochs=1, batch_size=12)
    stages = [replace(stage, epochs=epochs, image_size=size, dropout=drop) for epochs, size, drop in rows]
    lines = schedule_plot(stages)
    assert lines[0].startswith("image size")
    assert all(len(line) <= WIDTH + 14 for line in lines[:-1])

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from infra.tracking.outbox import File, Outbox, Row


def rows_of(*steps: int, key: str = "loss", time_ms: int = 7) -> list[Row]:
    return [Row(step, time_ms, {key: step / 2}) for step in steps]


def fill(outbox: Outbox, rows: list[Row]) -> Outbox:
    for row in rows:
        outbox.add_row(row)
    return outbox


def steps(outbox: Outbox) -> list[int]:
    return [row.step for row in outbox.rows(10_000)]


def test_rows_leave_in_order_and_only_when_confirmed() -> None:
    outbox = fill(Outbox(100), rows_of(1, 2, 3))
    first = outbox.rows(2)
    assert [row.step for row in first] == [1, 2]
    assert steps(outbox) == [1, 2, 3]
    outbox.confirm_rows(first)
    assert steps(outbox) == [3]
    assert len(outbox) == 1


def test_one_row_larger_than_a_batch_still_leaves() -> None:
    outbox = fill(Outbox(100), [Row(1, 1, {str(i): 0.0 for i in range(20)}), *rows_of(2)])
    assert [row.step for row in outbox.rows(10)] == [1]


def test_a_repeated_step_is_taken_once_for_each_metric() -> None:
    outbox = fill(Outbox(100), [Row(5, 1, {"a": 1.0}), Row(5, 2, {"a": 9.0, "b": 2.0}), Row(4, 3, {"a": 9.0})])
    assert [row.values for row in outbox.rows(100)] == [{"a": 1.0}, {"b": 2.0}]


def test_what_the_server_has_is_not_sent_again() -> None:
    outbox = fill(Outbox(100), [*rows_of(1, 2, 3, key="train/loss"), *rows_of(2, 4, key="val/loss")])
    outbox.settle({"train/loss": 2})
    assert [(row.step, *row.values) for row in outbox.rows(100)] == [
        (3, "train/loss"),
        (2, "val/loss"),
        (4, "val/loss"),
    ]
    fill(outbox, rows_of(3, 4, key="train/loss"))
    assert [row.step for row in outbox.rows(100)] == [3, 2, 4, 4]


def test_a_dump_is_loaded_in_front_and_wins_over_repetitions() -> None:
    before = fill(Outbox(100), [*rows_of(3, 4, 5, time_ms=1), Row(6, 1, {"loss": math.nan})])
    before.add_labels("tags", {"stage": "1", "kept": "yes"})
    before.add_file(File("grid.png", b"\x00png"))
    after = fill(Outbox(100), rows_of(4, 5, 6, 7, time_ms=2))
    after.add_labels("tags", {"stage": "2"})
    after.load(before.dump())
    assert [(row.step, row.time_ms) for row in after.rows(100)] == [(3, 1), (4, 1), (5, 1), (6, 1), (7, 2)]
    assert math.isnan(after.rows(100)[3].values["loss"])
    assert after.labels("tags") == {"stage": "2", "kept": "yes"}
    assert after.files() == [File("grid.png", b"\x00png")]


def test_a_damaged_line_costs_that_line() -> None:
    lines = fill(Outbox(100), rows_of(1, 2, 3)).dump().splitlines()
    outbox = Outbox(100)
    outbox.load(b"\n".join([lines[0], lines[1][:10], b"[]", b'{"step": 1, "metrics": 3}', b"\xff\xfe", lines[2]]))
    assert steps(outbox) == [1, 3]


def test_a_changed_label_is_not_confirmed_by_its_old_value() -> None:
    outbox = Outbox(100)
    outbox.add_labels("tags", {"a": "1", "b": "1"})
    sent = outbox.labels("tags")
    outbox.add_labels("tags", {"a": "2"})
    outbox.confirm_labels("tags", sent)
    assert outbox.labels("tags") == {"a": "2"}


def test_memory_is_bounded_and_the_loss_is_counted() -> None:
    outbox = fill(Outbox(3), rows_of(1, 2, 3, 4, 5))
    assert steps(outbox) == [1, 2, 3]
    assert outbox.dropped == 2


@given(
    sent=st.integers(0, 20),
    spooled=st.integers(0, 20),
    resumed=st.integers(0, 20),
    total=st.just(20),
    seed=st.integers(1, 3),
)
def test_any_death_leaves_each_step_once(sent: int, spooled: int, resumed: int, total: int, seed: int) -> None:
    """A process sent steps 0..sent-1, spooled up to `spooled`, died, and the next one repeats from `resumed` on."""
    spooled = max(spooled, sent)
    resumed = min(resumed, spooled)
    server = [(step, 1) for step in range(sent)]
    spool = fill(Outbox(1000), rows_of(*range(max(0, sent - seed), spooled), time_ms=1)).dump()
    outbox = fill(Outbox(1000), rows_of(*range(resumed, (resumed + total) // 2), time_ms=2))
    outbox.load(spool)
    outbox.settle({"loss": sent - 1} if sent else {})
    fill(outbox, rows_of(*range((resumed + total) // 2, total), time_ms=2))
    server += [(row.step, row.time_ms) for row in outbox.rows(1000)]
    assert [step for step, _ in server] == list(range(total))

"""What was measured, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from jobs.common.display import titled

Row = dict[str, Any]


def tables(report: dict[str, Any]) -> Iterator[Group | str]:
    """Yield a line on the machine, and a table or a line for each part."""
    yield _machine(report)
    for part, found in report["parts"].items():
        yield f"{part}: {found['error']}" if "error" in found else _SHOWN[part](found["rows"], report)


def _machine(report: dict[str, Any]) -> str:
    peak = report["peak_tflops"]
    known = (
        f"peak {peak:g} TFLOPS in bf16"
        if peak
        else "no peak is known for it, so no utilization is given (--peak-tflops sets one)"
    )
    device = f"{report['gpu']}; {known}" if report["gpu"] else "no GPU: these figures are of a CPU"
    sizes = ", tiny: these figures mean nothing" if report["tiny"] else ""
    return f"{report['model']} on {device}; {report['machine']}; torch {report['versions']['torch']}{sizes}"


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Group:
    table = Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if name in ("contender", "where") else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return titled(title, table)


def _speed(rows: list[Row], report: dict[str, Any]) -> Group:
    title = (
        f"side by side, batches from memory, {report['steps']} steps x {report['rounds']} rounds\n"
        "relative: this project's images/s to the contender's, median (quartiles)"
    )
    columns = ("px", "batch", "contender", "images/s", "ms", "host ms", "utilization", "relative")
    return _table(title, columns, [_speed_row(row) for row in rows])


def _speed_row(row: Row) -> tuple[str, ...]:
    used = "" if row["utilization"] is None else f"{row['utilization']:.1%}"
    ratio = f"{row['relative']:.3f} ({row['relative_low']:.3f}-{row['relative_high']:.3f})"
    figures = (f"{row['images_per_s']:.1f}", f"{row['step_ms']:.1f}", f"{row['host_ms']:.1f}", used, ratio)
    return (str(row["image_size"]), str(row["batch_size"]), row["contender"], *figures)


def _compile(rows: list[Row], report: dict[str, Any]) -> Group:
    columns = ("px", "batch", "contender", "images/s", "ms", "host ms", "utilization", "relative", "first step s")
    shown = [(*_speed_row(row), f"{row['first_step_s']:.1f}" if row["first_step_s"] else "") for row in rows]
    return _table("torch.compile with empty caches, beside the plain loop without it", columns, shown)


def _schedule(rows: list[Row], report: dict[str, Any]) -> Group:
    columns = ("px", "batch", "micro", "loaders", "images/s", "data wait", "peak GiB", "eval px", "eval images/s")
    shown = [
        (
            *(str(row[name]) for name in ("image_size", "batch_size", "micro_batch", "loader_workers")),
            *(f"{row['images_per_s']:.1f}", f"{row['data_wait_share']:.1%}", f"{row['peak_gib']:.2f}"),
            *(str(row["eval_size"]), f"{row['eval_images_per_s']:.1f}"),
        )
        for row in rows
    ]
    return _table("the schedule, fed by the loader", columns, shown)


def _waits(rows: list[Row], report: dict[str, Any]) -> Group:
    shown = []
    for row in rows:
        waits = row["waits"]
        places = [(where, str(count)) for where, count in waits.items()] if waits else []
        none = "not seen: only a GPU is waited for" if waits is None else "nowhere"
        shown += [(str(row["image_size"]), where, count) for where, count in places or [(none, "")]]
    title = f"where the host waits for the device in {report['steps']} steps, by torch.cuda.set_sync_debug_mode"
    return _table(title, ("px", "where", "times"), shown)


def _memory(rows: list[Row], report: dict[str, Any]) -> Group:
    (row,) = rows
    shown = (
        *(str(row[name]) for name in ("image_size", "batch_size")),
        *("yes" if row["survived"] else "NO", str(row["restarts"])),
        *(str(row["micro_batch"]), f"{row['restart_s']:.1f}"),
    )
    title = "too little memory for the whole batch" + (" (a stand-in: no GPU)" if row["stand_in"] else "")
    return _table(title, ("px", "batch", "survived", "restarts", "micro", "restart s"), [shown])


def _determinism(rows: list[Row], report: dict[str, Any]) -> Group:
    (row,) = rows
    equal = "equal" if row["equal"] else "DIFFERENT"
    shown = (*(str(row[name]) for name in ("image_size", "steps")), row["whole"][:16], row["resumed"][:16], equal)
    columns = ("px", "steps", "whole", "resumed", "")
    return _table("SHA-256 of a whole and a resumed run's state, trainer.deterministic", columns, [shown])


_SHOWN: dict[str, Callable[[list[Row], dict[str, Any]], Group]] = {
    "speed": _speed,
    "schedule": _schedule,
    "waits": _waits,
    "compile": _compile,
    "memory": _memory,
    "determinism": _determinism,
}

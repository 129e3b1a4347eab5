"""What a study found: in the terminal, and as artifacts of its MLflow run."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jobs.board import shown
from pipeline.provenance import config_values, differences
from pipeline.sweep.study import Result, Study

TOP = 5


def report(console: Console, study: Study, result: Result, *, recipe: str) -> None:
    """Show the best trials and the command that trains the winner in full."""
    best = study.best(result.records)
    if not best:
        console.print("no trial was finished")
        return
    table = Table(title=f"{study.base.name}: best trials", title_justify="left", box=SIMPLE_HEAD)
    for name in ("trial", *study.space, study.score_name):
        table.add_column(name, justify="right")
    for record in best[:TOP]:
        values = (shown(record.point[name]) for name in study.space)
        table.add_row(str(record.number), *values, f"{study.scores(record)[-1]:.4f}")
    console.print(table)
    console.print(winner_command(study, best[0].point, recipe), highlight=False, soft_wrap=True)


def winner_command(study: Study, point: dict[str, object], recipe: str) -> str:
    """Return the command that trains a point as a run of its own."""
    changes = differences(config_values(study.base), config_values(study.configure(point)))
    flags = " ".join(f"--{key.replace('_', '-')} {new}" for key, (_, new) in changes.items())
    return f"python -m jobs.train {recipe} --name {study.base.name}-best {flags}"

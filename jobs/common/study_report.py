"""The results of a study: in the terminal, in its storage, and as artifacts of its MLflow run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jobs.common.display import say, titled
from jobs.common.trials_view import shown
from model.rows import rows_as_json, rows_as_table
from model.tables import Block
from pipeline.run.provenance import config_values, differences
from pipeline.search.reward import Candidate, pareto_front
from pipeline.sweep.confirm import Confirmation
from pipeline.sweep.ledger import Record
from pipeline.sweep.report import importances, plots, report_markdown, scatter
from pipeline.sweep.strategy import Point
from pipeline.sweep.study import Study

TOP = 5
RowsOf = Callable[[Point], tuple[Block, ...]]


def sweep_files(study: Study, records: Sequence[Record], recipe: str) -> dict[str, bytes]:
    """Return the report's files by name."""
    best = study.best(records)
    if not best:
        return {}
    command = winner_command(study, best[0].point, recipe)
    return {"report.md": report_markdown(study, records, command).encode()} | plots(study, records)


def show_sweep(console: Console, study: Study, records: Sequence[Record], recipe: str) -> None:
    """Print the best trials, what mattered, and the command that trains the winner in full."""
    best = study.best(records)
    if not best:
        console.print("no trial was finished")
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("trial", *study.space, study.score_name):
        table.add_column(name, justify="right")
    for record in best[:TOP]:
        values = (shown(record.point[name]) for name in study.space)
        table.add_row(str(record.number), *values, f"{study.scores(record)[-1]:.4f}")
    console.print(titled(f"{study.base.name}: best trials", table))
    found = importances(study, records)
    if found:
        console.print("importance: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    say(console, winner_command(study, best[0].point, recipe))


def show_comparison(console: Console, found: Confirmation, score_name: str) -> None:
    """Print what recipe and winner gave over further seeds."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("seed", "recipe", "winner"):
        table.add_column(name, justify="right")
    both = [seed for seed in found.recipe if seed in found.winner]
    for seed in both:
        table.add_row(str(seed), f"{found.recipe[seed]:.4f}", f"{found.winner[seed]:.4f}")
    console.print(titled(f"{score_name} over further seeds", table))
    if both:
        error = found.standard_error
        console.print(f"winner - recipe: {found.difference:+.4f}, standard error {error:.4f}", highlight=False)


def winner_command(study: Study, point: Point, recipe: str) -> str:
    """Return the command that trains a point as a run of its own: the recipe with its flags, and the changes."""
    changes = differences(config_values(study.base), config_values(study.configure(point)))
    flags = " ".join(f"--{key.replace('_', '-')} {new}" for key, (_, new) in changes.items())
    return f"python -m jobs.train {recipe} --name {study.base.name}-best {flags}"


def search_files(study: Study, records: Sequence[Record], recipe: str, rows_of: RowsOf) -> dict[str, bytes]:
    """Return the report's files by name: as a sweep's, the Pareto front, and the best rows as JSON."""
    best = study.best(records)
    if not best:
        return {}
    rows = rows_of(best[0].point)
    command = rows_command(study, recipe)
    text = report_markdown(study, records, command) + f"\n```python\n{rows_as_table(rows)}\n```\n"
    made = {"report.md": text.encode(), "rows.json": rows_as_json(rows).encode()} | plots(study, records)
    candidates = {one.number: one for one in _candidates(study, records)}
    numbers = list(candidates)
    front = [numbers.index(one.number) for one in pareto_front(list(candidates.values()))]
    for name, label in (("step_ms", "step time, ms"), ("parameters", "parameters")):
        points = [(records[number].figures[name], candidates[number].accuracy) for number in numbers]
        made[f"pareto-{name.replace('_', '-')}.png"] = scatter(
            points, front, 0, x_label=label, y_label=study.base.checkpoint.best_metric
        )
    for number in (one.number for one in pareto_front(list(candidates.values()))):
        made[f"front/rows-{number:03d}.json"] = rows_as_json(rows_of(records[number].point)).encode()
    return made


def show_search(console: Console, study: Study, records: Sequence[Record], recipe: str, rows_of: RowsOf) -> None:
    """Print the Pareto front and the best candidates, and the best one's rows as they would stand in the tables."""
    best = study.best(records)
    if not best:
        console.print("no candidate was finished")
        return
    front = {one.number for one in pareto_front(_candidates(study, records))}
    table = Table(box=SIMPLE_HEAD)
    for name in ("trial", "reward", "accuracy", "step ms", "parameters", "Pareto front"):
        table.add_column(name, justify="right")
    shown_records = [record for record in best if record.number in front or record in best[:TOP] or record.number == 0]
    for record in shown_records:
        table.add_row(
            f"{record.number}{' (base)' if record.number == 0 else ''}",
            f"{study.scores(record)[-1]:.4f}",
            f"{record.stages[-1][study.base.checkpoint.best_metric]:.4f}",
            f"{record.figures['step_ms']:.1f}",
            f"{record.figures['parameters']:,.0f}",
            "yes" if record.number in front else "",
        )
    console.print(titled(f"{study.base.name}: best candidates", table))
    print(rows_as_table(rows_of(best[0].point)))  # as it is: to be pasted
    say(console, rows_command(study, recipe))


def rows_command(study: Study, recipe: str) -> str:
    """Return the command that trains the best rows in full: `recipe` with its flags, and the rows."""
    rows = shlex.quote(study.storage.location("report/rows.json"))
    return f"python -m jobs.train {recipe} --name {study.base.name}-best --model-rows {rows}"


def _candidates(study: Study, records: Sequence[Record]) -> list[Candidate]:
    metric = study.base.checkpoint.best_metric
    return [
        Candidate(
            record.number, record.stages[-1][metric], record.figures["step_ratio"], record.figures["parameter_ratio"]
        )
        for record in records
        if record.state == "finished"
    ]

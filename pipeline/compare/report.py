"""A comparison's report: JSON with everything, Markdown, and one HTML page with embedded charts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment

from pipeline.compare.charts import curves, finals
from pipeline.compare.config import Comparison
from pipeline.compare.history import CLOCKS, Figures, History
from pipeline.compare.speed import Cost
from pipeline.schedule.stages import REGULARIZATION

Table = list[list[str]]
"""Rows of cells; the first row is the head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All that a report says."""

    comparison: Comparison
    command: str
    metric: str
    highest: bool
    target: float
    figures: Mapping[str, Figures]
    histories: Mapping[str, Sequence[History]]
    costs: Mapping[str, Cost]
    tracking: str
    """MLflow run of the comparison, or an empty text."""

    @property
    def tables(self) -> dict[str, Table]:
        """The report's tables by title."""
        score = "Accuracy" if self.metric == "val/accuracy" else "Score"
        made = {f"{score} and time": outcome_table(self), "Costs": cost_table(self)}
        if self.comparison.grid is not None:
            made = {"Best of each column in bold": grid_table(self), **made}
        if any(run.adaptive.plateau or run.adaptive.closed_loop for run in self.comparison.variants.values()):
            made |= {"Stages as trained": stage_table(self)}
        return {**made, "Runs": run_table(self)}


def outcome_table(found: Findings) -> Table:
    """Return final scores and times to the target."""
    metric = found.metric.removeprefix("val/")
    head = ["", f"final {metric}", "difference", "train time", "CPU time", "images x px", "reached by",
            "time to target", "ratio", "CPU ratio", "images x px ratio"]  # fmt: skip
    baseline = found.figures[found.comparison.baseline]
    rows = []
    for name, one in found.figures.items():
        low, high = one.train_s_range
        rows.append(
            [
                name + (" (baseline)" if name == found.comparison.baseline else ""),
                spread(one.score, one.score_std),
                "" if one is baseline else f"{one.score - baseline.score:+.4f}",
                f"{one.totals['train_s']:.1f} s" + (f" ({low:.1f}-{high:.1f})" if len(one.seeds) > 1 else ""),
                f"{one.totals['cpu_s']:.1f} s",
                f"{one.totals['pixels'] / 1e6:.4g} M",
                f"{one.reached} of {len(one.seeds)}",
                "never" if one.to_target["train_s"] is None else f"{one.to_target['train_s']:.1f} s",
                *("" if one.ratio[clock] is None else f"{one.ratio[clock]:.2f}" for clock in CLOCKS),
            ]
        )
    return [head, *rows]


def short_table(found: Findings) -> Table:
    """Return what fits into a terminal of the figures."""
    head = ["", "accuracy" if found.metric == "val/accuracy" else found.metric, "train", "CPU", "to target", "ratio",
            "CPU ratio", "px ratio", "images/s"]  # fmt: skip
    rows = [
        [
            name,
            spread(one.score, one.score_std),
            *(f"{one.totals[clock]:.1f} s" for clock in ("train_s", "cpu_s")),
            "never" if one.to_target["train_s"] is None else f"{one.to_target['train_s']:.1f} s",
            *("" if one.ratio[clock] is None else f"{one.ratio[clock]:.2f}" for clock in CLOCKS),
            f"{one.images_per_s:.0f}",
        ]
        for name, one in found.figures.items()
    ]
    return [head, *rows]


def cost_table(found: Findings) -> Table:
    """Return what models and steps cost, and the other metrics."""
    others = sorted({name for one in found.figures.values() for name in one.metrics} - {found.metric})
    head = ["", "parameters", "multiply-adds", "at px", "train images/s", "per CPU s", "inference images/s",
            "peak memory", *(name.removeprefix("val/") for name in others)]  # fmt: skip
    rows = []
    for name, one in found.figures.items():
        cost = found.costs[name]
        rows.append(
            [
                name,
                f"{cost.parameters:,}",
                f"{cost.multiply_adds / 1e6:.4g} M",
                f"{cost.image_size}",
                f"{one.images_per_s:.0f}",
                f"{one.images_per_cpu_s:.0f}",
                f"{cost.images_per_s:.0f}",
                f"{one.peak_bytes / 1e6:,.0f} MB",
                *(f"{one.metrics[other]:.4f}" if other in one.metrics else "" for other in others),
            ]
        )
    return [head, *rows]


def stage_table(found: Findings) -> Table:
    """Return the lengths and the regularization that the stages had, means over the seeds."""
    stages = {name: [run.stages for run in runs] for name, runs in found.histories.items() if runs[0].stages}
    every = [stage.regularization for runs in stages.values() for run in runs for stage in run]
    fields = [field for field in REGULARIZATION if any(one[field] for one in every)]
    rows = []
    for name, runs in stages.items():
        by_stage = list(zip(*runs, strict=True))
        lengths = [mean(stage.epochs for stage in same) for same in by_stage]
        values = [[mean(stage.regularization[field] for stage in same) for same in by_stage] for field in fields]
        rows.append(
            [name, f"{sum(lengths):.2f}", *(" ".join(f"{one:.3g}" for one in row) for row in (lengths, *values))]
        )
    return [["", "epochs", "epochs of the stages", *(field.replace("_", " ") for field in fields)], *rows]


def grid_table(found: Findings) -> Table:
    """Return the crossed settings' scores, the best of each column in bold."""
    grid = found.comparison.grid
    assert grid is not None
    rows, columns = (list(dict.fromkeys(key[axis] for key in grid.cells)) for axis in (0, 1))
    pick = max if found.highest else min
    best = {column: pick(rows, key=lambda row: found.figures[grid.cells[row, column]].score) for column in columns}

    def cell(row: str, column: str) -> str:
        one = found.figures[grid.cells[row, column]]
        text = spread(one.score, one.score_std)
        return f"**{text}**" if best[column] == row else text

    head = [f"{grid.rows} \\ {grid.columns}", *columns]
    return [head, *([row, *(cell(row, column) for column in columns)] for row in rows)]


def run_table(found: Findings) -> Table:
    """Return every run with its place."""
    rows = [
        [name, str(run.seed), f"{run.score:.4f}", f"{run.evaluations[-1].train_s:.1f} s", f"{run.where}",
         "reused" if run.reused else "trained now", run.machine]
        for name, runs in found.histories.items()
        for run in runs
    ]  # fmt: skip
    return [["variant", "seed", "score", "train time", "run", "", "machine"], *rows]


def spread(mean: float, std: float | None) -> str:
    """Return a mean with its deviation."""
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def report_files(found: Findings) -> dict[str, bytes]:
    """Return the report's files by name."""
    pictures = {f"score-over-{clock.replace('_', '-')}.png": curves(
        found.histories, clock, found.target, found.metric) for clock in CLOCKS}  # fmt: skip
    pictures["final-scores.png"] = finals(found.figures, found.metric)
    return {
        "report.json": json.dumps(as_json(found), indent=1).encode(),
        "report.md": markdown(found, list(pictures)).encode(),
        "report.html": page(found, pictures).encode(),
        **pictures,
    }


def as_json(found: Findings) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "comparison": found.comparison.name,
        "command": found.command,
        "metric": found.metric,
        "target": found.target,
        "baseline": found.comparison.baseline,
        "mlflow_run": found.tracking,
        "variants": {
            name: asdict(one) | asdict(found.costs[name]) | {"runs": [asdict(run) for run in found.histories[name]]}
            for name, one in found.figures.items()
        },
    }


def headline(found: Findings) -> list[str]:
    """Return the notes: what was asked, and how the figures were made."""
    baseline = found.comparison.baseline
    lines = [found.comparison.question, *found.comparison.lines]
    lines.append(
        f"Target: {found.metric} {found.target:.4f}. Ratios are times of the mean curve to the target over those of "
        f"{baseline!r}; between two evaluations a straight line is taken. Train time leaves out evaluations and "
        "start-up; times are medians over the seeds (smallest-largest)."
    )
    machines = {run.machine for runs in found.histories.values() for run in runs}
    if len(machines) > 1:
        lines.append("The runs were trained on different machines: compare images x pixels, not times.")
    return lines


def markdown(found: Findings, pictures: Sequence[str]) -> str:
    """Return the report as Markdown; charts are files next to it."""
    lines = [f"# {found.comparison.name}", "", *(line for text in headline(found) for line in (text, ""))]
    for title, table in found.tables.items():
        lines += [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in table[:1])]
        lines += ["|---" + "|--:" * (len(table[0]) - 1) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in table[1:]), ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n".join([*lines, "", f"    {found.command}", ""])


def page(found: Findings, pictures: Mapping[str, bytes]) -> str:
    """Return the report as one HTML page that needs nothing else."""
    source = Path(__file__).with_name("report.html.jinja").read_text()
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            title=found.comparison.name,
            notes=headline(found),
            tables=found.tables,
            pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
            command=found.command,
        )
    )

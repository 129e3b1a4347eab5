"""Print the resolved plan of a recipe, and start nothing: `python -m jobs.plan RECIPE [--field value ...] [--json]`.

`python -m jobs.plan --diff A B [--json]` shows what differs between two recipes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from datasets.config import check_divisibility
from datasets.transforms.shape import format_size
from jobs.common.cli import default_config, parse_recipe, rate_notes, resolve, run_main
from jobs.common.data_size import DataSize, PlanFlags, data_size
from jobs.common.display import say, wide_console
from jobs.common.facts import rules_for, written
from jobs.common.parsing import UsageError
from jobs.common.schedule_plot import schedule_plot
from jobs.recipes.facts import Facts
from jobs.recipes.generic import GENERIC, TYPICAL, chosen_values
from model.checks import check_image_size, check_model
from pipeline.config import TrainConfig
from pipeline.run.node_share import feeding_line, loader_demand
from pipeline.run.preflight import with_numbers
from pipeline.run.provenance import config_values, differences
from pipeline.run.summary import other_sizes
from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import StageSpan, TrainingStage, mean_pixels
from pipeline.training.learning_rate import stage_learning_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """A stage as it will be trained."""

    resolved: TrainingStage
    """With its own number of workers and stochastic depth."""
    stage: int
    """Its number, from 1 on."""
    other_sizes: str
    """Random image sizes, in words."""
    steps: int
    samples: int
    lr_start: float
    lr_end: float
    eval_size: int
    bytes_read: int
    megapixels: float
    """Of all images that are trained on."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, with the fields of the stage itself among them."""
        values = asdict(self)
        return values.pop("resolved") | values


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over the stages."""

    steps: int
    samples: int
    bytes_read: int
    megapixels_of_fixed_size: float
    """Share of the pixels of training at the last size throughout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe's run will do."""

    recipe: str
    model: str
    data: DataSize
    aspect_ratio: float
    randaugment_policy: str
    flip_order: str
    stages: tuple[PlannedStage, ...]
    total: Totals
    facts: Facts | None = None
    """What a generic recipe's choices follow from; None: it isn't generic."""
    choices: dict[str, tuple[str, str]] | None = None
    """What a generic recipe chose, and why."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, without what isn't there."""
        values = asdict(self) | {"stages": [stage.to_json() for stage in self.stages]}
        return {name: value for name, value in values.items() if value is not None}


def plan(config: TrainConfig, size: DataSize) -> Plan:
    """Return the plan of a run: its stages, and the totals."""
    schedule = TrainingSchedule(config.stages, size.samples_per_epoch)
    total = schedule.total_samples

    def rate(cursor: int, stage: TrainingStage) -> float:
        return stage_learning_rate(
            config.optimizer, stage, cursor=cursor, samples_per_epoch=size.samples_per_epoch, total_samples=total
        )

    def planned(span: StageSpan) -> PlannedStage:
        stage, samples = span.stage, span.stop - span.start
        return PlannedStage(
            resolved=replace(
                stage, stochastic_depth=config.stochastic_depth_of(stage), num_workers=config.workers_of(stage)
            ),
            stage=span.index + 1,
            other_sizes=other_sizes(stage),
            steps=span.num_steps,
            samples=samples,
            lr_start=rate(span.start, stage),
            lr_end=rate(span.stop - stage.batch_size, stage),
            eval_size=config.trainer.eval_size(stage),
            bytes_read=round(samples * size.bytes_per_sample),
            megapixels=samples * stage.mean_pixels(config.data.aspect_ratio) / 1e6,
        )

    stages = tuple(planned(span) for span in schedule.spans)
    fixed = total * mean_pixels(config.stages[-1].image_size, (), 0.0, aspect_ratio=config.data.aspect_ratio) / 1e6
    return Plan(
        recipe=config.name,
        model=config.model.name,
        data=size,
        aspect_ratio=config.data.aspect_ratio,
        randaugment_policy=config.data.randaugment_policy,
        flip_order=config.data.flip_order if config.data.flip else "none",
        stages=stages,
        total=Totals(
            steps=sum(stage.steps for stage in stages),
            samples=total,
            bytes_read=sum(stage.bytes_read for stage in stages),
            megapixels_of_fixed_size=sum(stage.megapixels for stage in stages) / fixed,
        ),
    )


def human_bytes(count: float) -> str:
    """Return 1536 as `1.5 KB` (powers of 1000, as storage is billed)."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def plan_table(planned: Plan) -> Table:
    """Return the plan as a table."""
    data, total, rows = planned.data, planned.total, planned.stages
    augments = any(row.resolved.randaugment_magnitude for row in rows)
    policy = f"RandAugment's policy: {planned.randaugment_policy}; " if augments else ""
    flips = "off" if planned.flip_order == "none" else planned.flip_order
    table = Table(
        title=f"{planned.recipe}: {planned.model} on {data.samples:,} images ({data.source})",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=f"{total.steps:,} steps, {total.samples:,} samples, {human_bytes(total.bytes_read)} read; "
        f"{total.megapixels_of_fixed_size:.0%} of the pixels of training at the last size throughout\n"
        f"{policy}flips: {flips}",
        caption_justify="left",
    )
    names = ("stage", "px", "eval", "batch", "RandAug", "Mixup", "CutMix", "dropout", "depth", "epochs", "steps", "LR")
    crops = ["crop area"] if any(row.resolved.crop_area for row in rows) else []
    others = ["other sizes"] if any(row.other_sizes for row in rows) else []
    for name in (*names, "read", *crops, *others):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        stage, ratio = row.resolved, planned.aspect_ratio
        table.add_row(
            str(row.stage),
            *(format_size(size, ratio) for size in (stage.image_size, row.eval_size)),
            str(stage.batch_size),
            *(f"{stage.randaugment_magnitude:.3g}", f"{stage.mixup_alpha:.3g}", f"{stage.cutmix_alpha:.3g}"),
            *(f"{stage.dropout:.3g}", f"{stage.stochastic_depth:.3g}", f"{stage.epochs:.4g}", f"{row.steps:,}"),
            *(f"{row.lr_start:.2g} - {row.lr_end:.2g}", human_bytes(row.bytes_read)),
            *("{:g} - {:g}".format(*stage.crop_area) if stage.crop_area else "the data's" for _ in crops),
            *(row.other_sizes for _ in others),
        )
    return table


def choices(argv: Sequence[str], config: TrainConfig) -> dict[str, tuple[str, str]]:
    """Return what a generic recipe chose, and why: {choice: (value, reason)}. A flag is the reason of what it changed.

    Args:
        argv: the resolved command line.
        config: the config of it.
    """
    chosen, values, reasons = chosen_values(default_config(argv)), chosen_values(config), rules_for(argv).reasons
    return {name: (values[name], reasons[name] if values[name] == chosen[name] else "a flag") for name in values}


def choices_table(facts: Facts, chosen: dict[str, tuple[str, str]]) -> Table:
    """Return a row for each choice of a generic recipe, below the facts that it follows from."""
    shown = ", ".join(
        f"{name.replace('_', '-')} {value if isinstance(value, str) else f'{value:,}'}"
        for name, value in asdict(facts).items()
    )
    table = Table(title=f"facts: {shown}", title_justify="left", box=SIMPLE_HEAD)
    for column in ("choice", "value", "reason"):
        table.add_column(column, overflow="fold")
    for name, (value, reason) in chosen.items():
        table.add_row(name, value, reason)
    return table


def difference_table(changes: dict[str, tuple[Any, Any]], names: Sequence[str]) -> Table:
    """Return a row for each field that differs."""
    table = Table(box=SIMPLE_HEAD, caption=f"{len(changes)} fields differ", caption_justify="left")
    for column in ("field", *names):
        table.add_column(column, justify="left" if column == "field" else "right", overflow="fold")
    for field, values in changes.items():
        table.add_row(field, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))
    return table


def print_differences(argv: Sequence[str]) -> int:
    """Print what differs between two recipes, for the arguments `A B [--json]`.

    Raises:
        UsageError: not two names of recipes.
    """
    names = [name for name in argv if name != "--json"]
    if len(names) != 2:
        raise UsageError(f"--diff takes the names of two recipes, not {len(names)}: python -m jobs.plan --diff A B")
    prog = "python -m jobs.plan --diff"
    one, other = (config_values(parse_recipe(_typical(name), prog=prog)[0]) for name in names)
    changes = differences(one, other)
    if "--json" in argv:
        print(json.dumps({field: {"a": a, "b": b} for field, (a, b) in changes.items()}, indent=1))
    else:
        wide_console().print(difference_table(changes, names))
    return 0


def _typical(recipe: str) -> list[str]:
    """Return the command line of a recipe without data: a generic one with typical facts."""
    return [recipe, "--facts", written(TYPICAL)] if recipe in GENERIC else [recipe]


def main(argv: Sequence[str]) -> int:
    """Print the plan; refuse what can't work."""
    if argv and argv[0] == "--diff":
        return print_differences(argv[1:])
    command = resolve(argv)
    config, flags = parse_recipe(command.argv, prog="python -m jobs.plan", extra=PlanFlags)
    assert flags is not None
    config = with_numbers(config)
    check_model(config.model)
    for size in {size for stage in config.stages for size in (*stage.image_sizes, config.trainer.eval_size(stage))}:
        check_image_size(config.model, size, config.data.shape)
    check_divisibility(
        config.data,
        batch_sizes=[stage.batch_size for stage in config.stages],
        worker_counts=config.worker_counts,
    )
    known = data_size(config, flags)
    planned = plan(config, known)
    if command.argv[0] in GENERIC:
        facts = rules_for(command.argv).facts
        planned = replace(planned, facts=facts, choices=choices(command.argv, config))
    if flags.json:
        print(json.dumps(planned.to_json(), indent=1))
    else:
        notes = (*command.notes, *rate_notes(command.argv, config), *_node_notes(config, known))
        print_plan(planned, config, notes)
    return 0


def _node_notes(config: TrainConfig, size: DataSize) -> list[str]:
    """Return what GPUs need of their nodes, and what is compiled before the first step, in a line each."""
    lines = []
    if config.cluster.gpus_per_worker and (demand := loader_demand(config, size.copies)).is_plausible:
        lines.append(feeding_line(config, demand))
    if config.trainer.compile:
        shapes = sum(len(stage.image_sizes) + 1 for stage in config.stages)
        lines.append(f"{shapes} shapes or more are compiled before the first step; the log says in which time")
    return lines


def print_plan(planned: Plan, config: TrainConfig, notes: Sequence[str]) -> None:
    """Print the plan as tables, the schedule drawn, the data report, and notes."""
    console = wide_console()
    console.print(plan_table(planned))
    if planned.facts and planned.choices:
        console.print(choices_table(planned.facts, planned.choices))
    plot = schedule_plot(config.stages, encoding=console.encoding)
    for line in (*plot, "", *planned.data.report, *(f"note: {line}" for line in notes)):
        say(console, line)


if __name__ == "__main__":
    run_main(main)

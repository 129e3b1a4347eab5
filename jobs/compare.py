"""Compare runs: `python -m jobs.compare COMPARISON [--recipe RECIPE] [--field value ...]`, or several RECIPES.

Trains what isn't trained yet, one run after the other, and makes one report. The same command goes on.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from jobs.cli import UsageError, parse_recipe, run_main
from jobs.comparisons import COMPARISONS
from jobs.display import wide_console
from jobs.recipes import RECIPES
from pipeline.compare.config import CompareError, CompareOptions, Comparison
from pipeline.config import TrainConfig

if TYPE_CHECKING:
    from infra.tracking import Tracker
    from pipeline.compare.history import History
    from pipeline.compare.report import Findings
    from pipeline.compare.runs import Planned

PROG = "python -m jobs.compare"
SHORT = {"--train": "--data.train", "--val": "--data.val"}
PEER = {"timm": "timm, fixed"}


def main(argv: Sequence[str]) -> int:
    """Plan, train, report. Exit code 1: a run failed; 3: stopped before the end."""
    comparison, options = parse(argv)
    command = shlex.join([*PROG.split(), *argv])
    return _Compare(wide_console(), comparison, options, command).run()


def parse(argv: Sequence[str]) -> tuple[Comparison, CompareOptions]:
    """Return the comparison that a command line asks for.

    Raises:
        UsageError: no such comparison, recipe or field.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if argv else 2)
    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    rest = [_long(argument) for argument in argv[len(names) :]]
    if len(names) == 1 and names[0] in COMPARISONS:
        config, options = _recipe(_recipe_flag(rest), rest)
        comparison = COMPARISONS[names[0]](scaled(config, options.epochs))
        own_name = config.name != RECIPES[_recipe_flag(rest)]().name
    else:
        for name in names:
            _check_known(name)
        if len(names) != len(set(names)) or not names:
            raise UsageError(f"name each recipe once, and at least one comparison or recipe: {' '.join(names)}")
        parsed = [_recipe(name, rest) for name in names]
        config, options = parsed[0]
        own_name = config.name != RECIPES[names[0]]().name
        variants = {name: scaled(one, options.epochs) for name, (one, _) in zip(names, parsed, strict=True)}
        comparison = Comparison(
            name="-".join(name.replace("_", "-") for name in names),
            question="Recipes as they are, each at its own stages.",
            variants=variants,
            baseline=names[0],
        )
    return _with_peer(_named(comparison, config.name if own_name else ""), options), options


def scaled(config: TrainConfig, epochs: float) -> TrainConfig:
    """Return a config whose stages are so many epochs together, the warm-up in proportion; 0: as it is."""
    if not epochs:
        return config
    factor = epochs / sum(stage.epochs for stage in config.stages)
    stages = tuple(replace(stage, epochs=stage.epochs * factor) for stage in config.stages)
    optimizer = replace(config.optimizer, warmup_epochs=config.optimizer.warmup_epochs * factor)
    return replace(config, stages=stages, optimizer=optimizer)


class _Compare:
    """A comparison on its way."""

    def __init__(self, console: Console, comparison: Comparison, options: CompareOptions, command: str) -> None:
        self.console, self.comparison, self.options, self.command = console, comparison, options, command
        base = comparison.variants[comparison.baseline]
        self.metric, self.highest = base.checkpoint.best_metric, base.checkpoint.best_is == "highest"
        if not self.metric:
            raise CompareError("checkpoint.best_metric is empty: a comparison needs the metric that it is about")

    def run(self) -> int:
        """Train what is missing, then report."""
        from infra.storage import open_storage
        from infra.tracking import Tracker
        from pipeline.compare.runs import plan_runs

        planned = plan_runs(self.comparison, self.options.seeds)
        self._show_plan(planned)
        if self.options.dry_run:
            return 0
        self.base = next(run for run in planned if run.variant == self.comparison.baseline).ready.config
        self.storage = open_storage(f"{self.base.storage}/{self.comparison.name}")
        tracking = replace(self.base.tracking, system_metrics=False)
        tracker = Tracker(tracking, self.comparison.name, storage=self.storage)
        tracker.set_tags({"kind": "comparison"})
        tracker.log_params({"command": self.command, "baseline": self.comparison.baseline})
        tracker.flush(30)
        status = "KILLED"
        try:
            histories = self._histories(planned, tracker.run_id or "")
            if histories is None:
                return 3
            found = self._findings(histories, planned, tracker.url or tracker.run_id or "")
            self._keep(found, tracker)
            status = "FINISHED"
        except RuntimeError as error:
            status = "FAILED"
            self.console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
        finally:
            tracker.close(status)
        return 0

    def _histories(self, planned: Sequence[Planned], parent: str) -> dict[str, list[History]] | None:
        """Return all runs' histories by variant, trained where there is none; None: stopped."""
        from pipeline.compare.runs import find_run

        histories: dict[str, list[History]] = {name: [] for name in self.comparison.variants}
        known: dict[tuple[str, bool], History] = {}
        for number, run in enumerate(planned, start=1):
            key = run.fingerprint, run.variant in self.comparison.peers
            label = f"run {number} of {len(planned)}, {run.variant}, seed {run.seed}"
            if key in known:  # variants may be the same run
                found: History | None = replace(known[key], variant=run.variant)
            elif run.variant in self.comparison.peers:
                found = self._peer_run(run, parent)
            else:
                found = find_run(run, self.metric) or self._trained(run, label, parent)
            if found is None:
                self.console.print(f"{self.comparison.name}: stopped; the same command goes on")
                return None
            score = f"{self.metric} {found.score:.4f}, {found.evaluations[-1].train_s:.1f} s of training"
            self._say(f"{label}: {score}{', reused ' + found.name if found.reused else ''}")
            known[key] = found
            histories[run.variant].append(found)
        return histories

    def _trained(self, run: Planned, label: str, parent: str) -> History | None:
        from pipeline.compare.runs import find_run

        self._say(f"{label}: trains as {run.ready.config.name}")
        if not self._train(run, parent):
            return None
        trained = find_run(run, self.metric)
        if trained is None:
            raise RuntimeError(f"{run.ready.config.name} has ended, but its history can't be read")
        return replace(trained, reused=False)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _train(self, run: Planned, parent: str) -> bool:
        from jobs.train import follow_to_end

        config = run.ready.config
        values = (("compare.comparison", self.comparison.name), ("compare.variant", run.variant))
        tracking = replace(config.tracking, parent_run_id=parent, extra_params=values)
        ready = replace(run.ready, config=replace(config, tracking=tracking))
        try:
            status = follow_to_end(self.console, ready)
        except RuntimeError as error:
            raise RuntimeError(f"{config.name} failed: {error}; the same command tries it again") from error
        return bool(status["phase"] == "finished")

    def _peer_run(self, run: Planned, parent: str) -> History:
        from pipeline.compare.peer import peer_history

        return peer_history(run, self.metric, parent, self.comparison.name)

    def _findings(self, histories: dict[str, list[History]], planned: Sequence[Planned], tracking: str) -> Findings:
        from pipeline.compare.history import figures
        from pipeline.compare.report import Findings
        from pipeline.compare.speed import costs

        target, found = figures(histories, self.comparison.baseline, self.options.target or None, highest=self.highest)
        configs = {run.variant: run.ready.config for run in planned}
        return Findings(
            comparison=self.comparison,
            command=self.command,
            metric=self.metric,
            highest=self.highest,
            target=target,
            figures=found,
            histories=histories,
            costs=costs(configs, len(planned[0].ready.train.classes), self.storage),
            tracking=tracking,
        )

    def _keep(self, found: Findings, tracker: Tracker) -> None:
        """Write the report to storage, to MLflow, and where the user wants it; show its main table."""
        from pipeline.compare.report import report_files

        for name, content in report_files(found).items():
            self.storage.write(f"report/{name}", content)
            tracker.log_artifact_bytes(f"report/{name}", content)
            if self.options.out:
                Path(self.options.out).mkdir(parents=True, exist_ok=True)
                Path(self.options.out, name).write_bytes(content)
        for variant, one in found.figures.items():
            name = variant.replace(",", "")
            tracker.log_metrics({f"score/{name}": one.score, f"train_s/{name}": one.totals["train_s"]}, step=0)
        for title, table in found.tables.items():
            if title != "Runs":
                self.console.print(f"\n{title}")
                self.console.print(_rich(table))
        where = self.options.out or self.storage.location("report")
        self.console.print(f"report: {where}/report.html", markup=False, highlight=False, soft_wrap=True)

    def _show_plan(self, planned: Sequence[Planned]) -> None:
        self.console.print(self.comparison.question, highlight=False, soft_wrap=True)
        table = [["variant", "stages, px", "RandAugment", "epochs", "model", "images x px"]]
        for run in planned[: len(self.comparison.variants)]:
            stages = run.ready.config.stages
            pixels = sum(stage.num_samples(run.ready.samples_per_epoch) * stage.image_size**2 for stage in stages)
            sizes = dict.fromkeys(str(stage.image_size) for stage in stages)
            strengths = dict.fromkeys(f"{stage.randaugment_magnitude:.3g}" for stage in stages)
            epochs, model = sum(stage.epochs for stage in stages), run.ready.config.model.name
            row = [run.variant, " ".join(sizes), " ".join(strengths), f"{epochs:g}", model, f"{pixels / 1e6:,.0f} M"]
            table.append(row)
        self.console.print(_rich(table))


def _rich(table: list[list[str]]) -> RichTable:
    made = RichTable(box=SIMPLE_HEAD)
    for index, name in enumerate(table[0]):
        made.add_column(name, justify="left" if index == 0 else "right")
    for row in table[1:]:
        made.add_row(*(cell.strip("*") for cell in row))
    return made


def _recipe(name: str, rest: Sequence[str]) -> tuple[TrainConfig, CompareOptions]:
    config, options = parse_recipe([name, *rest], prog=PROG, extra=CompareOptions)
    assert options is not None
    return config, options


def _recipe_flag(rest: Sequence[str]) -> str:
    """Return the recipe that the flags name: it must be known before the others can be read."""
    for index, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag == "--recipe":
            with suppress(IndexError):
                name = value if equals else rest[index + 1]
                _check_known(name)
                return name
    return CompareOptions().recipe


def _check_known(name: str) -> None:
    if name not in RECIPES:
        close = difflib.get_close_matches(name, [*COMPARISONS, *RECIPES], n=1)
        hint = f"did you mean {close[0]}?" if close else f"comparisons: {', '.join(COMPARISONS)}; or recipes"
        raise UsageError(f"no comparison or recipe is named {name!r}: {hint}")


def _named(comparison: Comparison, own: str) -> Comparison:
    """Give the comparison the name that the user gave, or one of recipe and kind."""
    base = comparison.variants[comparison.baseline]
    name = own or (f"{base.name}-{comparison.name}" if comparison.name in COMPARISONS else f"compare-{comparison.name}")
    return replace(comparison, name=name)


def _with_peer(comparison: Comparison, options: CompareOptions) -> Comparison:
    if options.peer == "none":
        return comparison
    from jobs.comparisons import fixed_stages

    base = comparison.variants[comparison.baseline]
    twin = replace(base, stages=fixed_stages(base.stages))
    name = PEER[options.peer]
    variants = {**comparison.variants, name: twin}
    return replace(comparison, variants=variants, peers={name: comparison.baseline})


def _long(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{SHORT.get(flag, flag)}{equals}{value}"


def _usage() -> str:
    lines = [
        f"usage: {PROG} COMPARISON [--recipe RECIPE] [--train URL --val URL] [--seeds 0 1 2] [--epochs E]",
        f"       {PROG} RECIPE RECIPE... [--field value ...]",
        f"       ({PROG} COMPARISON --help lists the fields)",
        "",
        "comparisons:",
    ]
    for name, make in COMPARISONS.items():
        lines.append(f"  {name:24} {(make.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", f"recipes: {', '.join(RECIPES)}"])


if __name__ == "__main__":
    run_main(main)

"""Compare runs: `python -m jobs.compare COMPARISON [--recipe RECIPE] [--field value ...]`, or several RECIPES.

Trains what isn't trained yet, one run after the other, and makes one report. Run the same command again to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from datasets.transforms.shape import format_size
from infra.redact import redacted_command
from infra.storage.open import open_storage
from jobs.common.cli import run_main
from jobs.common.compare_args import PROG, parse
from jobs.common.display import say, wide_console
from pipeline.compare.config import CompareError, CompareOptions, Comparison

if TYPE_CHECKING:
    from infra.tracking.tracker import Tracker
    from pipeline.compare.history import History
    from pipeline.compare.report import Findings
    from pipeline.compare.runs import Planned


def main(argv: Sequence[str]) -> int:
    """Plan, train, report. Exit code 1: a run failed; 3: stopped before the end."""
    comparison, options = parse(argv)
    command = redacted_command([*PROG.split(), *argv])
    return _Compare(wide_console(), comparison, options, command).run()


class _Compare:
    """A comparison on its way."""

    def __init__(self, console: Console, comparison: Comparison, options: CompareOptions, command: str) -> None:
        self.console, self.comparison, self.options, self.command = console, comparison, options, command
        self.copy = open_storage(options.out, what="--out") if options.out else None
        base = comparison.variants[comparison.baseline]
        self.metric, self.highest = base.checkpoint.best_metric, base.checkpoint.best_is == "highest"
        if not self.metric:
            raise CompareError("checkpoint.best_metric is empty: a comparison needs the metric that it is about")
        if base.resume_from:
            raise CompareError("resume_from: compared runs start from scratch, or from --model.init-from")

    def run(self) -> int:
        """Train what is missing, then report."""
        from infra.tracking.tracker import Tracker
        from pipeline.compare.peer_check import check_peer
        from pipeline.compare.runs import plan_runs
        from pipeline.run.origin import origin_tags

        planned = plan_runs(self.comparison, self.options.seeds, dry=self.options.dry_run)
        for run in planned:
            if run.variant in self.comparison.peers:
                check_peer(run.ready, self.metric, self.options.peer_script)
        self._show_plan(planned)
        if self.options.dry_run:
            return 0
        if self.copy is not None:  # before hours of training
            self.copy.check_writable()
        self.base = next(run for run in planned if run.variant == self.comparison.baseline).ready.config
        self.storage = open_storage(replace(self.base, name=self.comparison.name).folder)
        tracking = replace(self.base.tracking, system_metrics=False)
        tracker = Tracker(tracking, self.comparison.name, storage=self.storage)
        tracker.set_tags({"kind": "comparison", **origin_tags()})
        tracker.log_params({"command": self.command, "baseline": self.comparison.baseline})
        tracker.flush(30)
        status = "FAILED"
        try:
            histories = self._histories(planned, tracker.run_id or "")
            if histories is None:
                status = "KILLED"
                return 3
            found = self._findings(histories, planned, tracker.url or tracker.run_id or "")
            self._keep(found, tracker)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except RuntimeError as error:
            say(self.console, f"error: {error}", style="red")
            return 1
        finally:
            tracker.close(status)
        return 0

    def _histories(self, planned: Sequence[Planned], parent: str) -> dict[str, list[History]] | None:
        """Return all runs' histories by variant, trained where there is none; None: stopped."""
        from pipeline.compare.runs import find_run, record_is_open

        histories: dict[str, list[History]] = {name: [] for name in self.comparison.variants}
        known: dict[tuple[str, bool], History] = {}
        for number, run in enumerate(planned, start=1):
            key = run.fingerprint, run.variant in self.comparison.peers
            found: History | None
            label = f"run {number} of {len(planned)}, {run.variant}, seed {run.seed}"
            if key in known:  # variants may be the same run
                found = replace(known[key], variant=run.variant)
            elif run.variant in self.comparison.peers:
                found = self._peer_run(run, parent)
            else:
                found, to_train = find_run(run, self.metric)
                name = to_train.ready.config.name
                if found is None:
                    say(self.console, f"{label}: trains as {name}")
                    found = self._trained(to_train, parent)
                elif record_is_open(to_train, found):
                    say(self.console, f"{label}: the record of {name} in MLflow was left open: completing it")
                    found = self._completed(to_train, found, parent)
            if found is None:
                self.console.print(f"{self.comparison.name}: stopped; run the same command again to resume")
                return None
            score = f"{self.metric} {found.score:.4f}, {found.evaluations[-1].train_s:.1f} s of training"
            say(self.console, f"{label}: {score}{', reused ' + found.name if found.reused else ''}")
            known[key] = found
            histories[run.variant].append(found)
        return histories

    def _trained(self, run: Planned, parent: str) -> History | None:
        from pipeline.compare.runs import SpoiltRunError, read_run

        config = run.ready.config
        if not self._train(run, parent):
            return None
        try:
            trained = read_run(config.storage, config.name, run, self.metric)
        except SpoiltRunError as error:
            raise RuntimeError(
                f"{config.name} can't be compared: {error}; the same command trains it again under another name"
            ) from None
        if trained is None:
            raise RuntimeError(
                f"{config.name} has ended without its last checkpoint; run the command again to resume it"
            )
        return replace(trained, reused=False)

    def _completed(self, run: Planned, found: History, parent: str) -> History | None:
        """Complete a run's record; a comparison needs none, so what goes wrong with it is said and no more."""
        try:
            return found if self._train(run, parent) else None
        except (RuntimeError, ValueError) as error:
            say(self.console, f"note: its record is left as it is: {error}")
            return found

    def _train(self, run: Planned, parent: str) -> bool:
        from jobs.common.follow import follow_to_end

        config = run.ready.config
        values = (("compare.comparison", self.comparison.name), ("compare.variant", run.variant))
        tracking = replace(config.tracking, parent_run_id=parent, extra_params=values)
        ready = replace(run.ready, config=replace(config, tracking=tracking))
        try:
            status = follow_to_end(self.console, ready)
        except RuntimeError as error:
            raise RuntimeError(f"{config.name} failed: {error}; the same command tries it again") from error
        return status.phase == "finished"

    def _peer_run(self, run: Planned, parent: str) -> History:
        from pipeline.compare.peer import peer_history

        say(self.console, f"{self.options.peer_script} trains {run.ready.config.name}")
        return peer_history(run, self.metric, parent, self.comparison.name, self.options.peer_script)

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
        from pipeline.compare.report import grid_table, report_files, short_table

        files = report_files(found)
        for name, content in files.items():
            self.storage.write(f"report/{name}", content)
            tracker.log_artifact_bytes(f"report/{name}", content)
        tracker.flush(30)  # else it may not know yet what an earlier report of this comparison has logged
        named = {variant.replace(",", ""): one for variant, one in found.figures.items()}
        step = tracker.last_step(f"score/{name}" for name in named) + 1
        for name, one in named.items():
            tracker.log_metrics({f"score/{name}": one.score, f"train_s/{name}": one.totals["train_s"]}, step=step)
        if self.copy is not None:
            for name, content in files.items():
                self.copy.write(name, content)
        if found.comparison.grid is not None:
            self.console.print(_rich(grid_table(found)))
        say(self.console, f"target: {found.metric} {found.target:.4f}")
        self.console.print(_rich(short_table(found)))
        where = self.options.out or self.storage.location("report")
        say(self.console, f"report: {where}/report.html")

    def _show_plan(self, planned: Sequence[Planned]) -> None:
        say(self.console, self.comparison.question)
        table = [["variant", "stages, px", "RandAugment", "epochs", "model", "images x px"]]
        for run in planned[: len(self.comparison.variants)]:
            stages, ratio = run.ready.config.stages, run.ready.config.data.aspect_ratio
            pixels = sum(stage.num_samples(run.ready.samples_per_epoch) * stage.mean_pixels(ratio) for stage in stages)
            sizes = dict.fromkeys(format_size(stage.image_size, ratio) for stage in stages)
            strengths = dict.fromkeys(f"{stage.randaugment_magnitude:.3g}" for stage in stages)
            epochs, model = sum(stage.epochs for stage in stages), run.ready.config.model.name
            row = [run.variant, " ".join(sizes), " ".join(strengths), f"{epochs:g}", model, _millions(pixels)]
            table.append(row)
        self.console.print(_rich(table))
        for note in self.comparison.lines:
            say(self.console, note)


def _millions(number: float) -> str:
    """Return 1.234e9 as `1,234 M`, and of less than ten millions two digits."""
    return f"{number / 1e6:,.0f} M" if number >= 1e7 else f"{number / 1e6:.2g} M"


def _rich(table: list[list[str]]) -> RichTable:
    made = RichTable(box=SIMPLE_HEAD)
    for index, name in enumerate(table[0]):
        made.add_column(name, justify="left" if index == 0 else "right")
    for row in table[1:]:
        made.add_row(*(cell.strip("*") for cell in row))
    return made


if __name__ == "__main__":
    run_main(main)

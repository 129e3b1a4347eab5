"""Sweep over a recipe's regularization: `python -m jobs.sweep RECIPE [--field value ...]`. Running it again resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.tree import Tree

from datasets.transforms.shape import format_size
from jobs.common.cli import default_config, parse_recipe, recipe_words, resolve, run_main
from jobs.common.display import say, wide_console
from jobs.common.facts import record_facts
from jobs.common.study_run import train_study
from jobs.recipes.sweep_spaces import space_of
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight, preflight
from pipeline.sweep.config import SweepOptions
from pipeline.sweep.space import SweepSpace
from pipeline.sweep.tree import Node, plan_tree, saving, shared_prefixes

if TYPE_CHECKING:
    from pipeline.sweep.ledger import Record
    from pipeline.sweep.study import Study


def main(argv: Sequence[str]) -> int:
    """Plan, train the trials, report. Exit code 1: not one trial was finished; 3: stopped before its end."""
    argv = resolve(argv, suffix="-sweep").argv
    config, options = parse_recipe(argv, prog="python -m jobs.sweep", extra=SweepOptions)
    assert options is not None
    if config.name == default_config(argv).name:
        config = replace(config, name=f"{config.name}-sweep")
    if not config.checkpoint.best_metric:
        raise ValueError("checkpoint.best_metric is empty: a sweep compares trials by it, name a metric")
    if config.adaptive.closed_loop or config.adaptive.plateau:
        raise ValueError(
            "adaptive.closed_loop and adaptive.plateau choose what a sweep is to compare, leave them out: "
            "--adaptive.closed-loop False --adaptive.plateau False"
        )
    console = wide_console()
    # The study's own folder holds no run; everything else of its config is what its trials will have.
    ready = preflight(config)
    if not options.dry_run:
        record_facts(argv, ready.config.storage, config.name)
    return _Sweep(console, recipe_words(argv, SweepOptions), ready, space_of(argv[0], config), options).run()


class _Sweep:
    """A sweep on its way."""

    def __init__(
        self, console: Console, recipe: str, ready: Preflight, space: SweepSpace, options: SweepOptions
    ) -> None:
        self.console, self.recipe, self.ready, self.space, self.options = console, recipe, ready, space, options

    def run(self) -> int:
        """Plan, then train unless it is a dry run."""
        from jobs.common.study_report import show_sweep, sweep_files
        from pipeline.sweep.strategy import RandomStrategy
        from pipeline.sweep.study import open_ledger, planned_points

        options, study = self.options, self._study()
        ledger = open_ledger(study, dry_run=options.dry_run)
        # With TPE the points aren't known beforehand; random ones of the same space say which starts can be equal.
        drawn = RandomStrategy(study.space, seed=options.search_seed)
        points = planned_points(study, ledger.records, options.max_trials, drawn)
        planned = {number: study.configure(point) for number, point in enumerate(points)}
        if options.share:
            study = replace(study, shared=shared_prefixes(planned.values()))
        self._show_plan(planned)
        if options.dry_run:
            return 0
        result = train_study(
            self.console, study, options, ledger, files=lambda records: sweep_files(study, records, self.recipe)
        )
        show_sweep(self.console, study, result.records, self.recipe)
        if not result.whole:
            return 3
        best = study.best(result.records)
        if best and options.confirm:
            return self._confirm(study, best[0])
        return 0 if best else 1

    def _study(self) -> Study:
        from pipeline.sweep.strategy import make_strategy
        from pipeline.sweep.study import Study

        config, options, distributions = self.ready.config, self.options, self.space.distributions()
        metric, highest = config.checkpoint.best_metric, config.checkpoint.best_is == "highest"
        return Study(
            kind="sweep",
            base=config,
            space=distributions,
            strategy=make_strategy(
                options.search, distributions, seed=options.search_seed, highest=highest, max_trials=options.max_trials
            ),
            first=self.space.point_of(config),
            configure=lambda point: self.space.apply(config, point),
            score=lambda metrics, figures: metrics[metric],
            score_name=metric,
            highest=highest,
            scheduler=options.scheduler,
            eta=options.eta,
            plan={
                "space": {name: repr(value) for name, value in self.space.ranges().items()},
                "search": options.search,
                "search_seed": options.search_seed,
                "scheduler": options.scheduler,
                "eta": options.eta,
            },
        )

    def _confirm(self, study: Study, winner: Record) -> int:
        """Train winner and recipe over further seeds."""
        from jobs.common.study_report import show_comparison
        from pipeline.sweep.confirm import comparison, confirmation
        from pipeline.sweep.study import open_ledger

        if winner.point == study.first:
            self.console.print("the recipe's own values are the winner: nothing to confirm")
            return 0
        confirming, count = confirmation(study, winner.point, self.options.confirm, share=self.options.share)
        options = replace(self.options, max_trials=count)
        result = train_study(self.console, confirming, options, open_ledger(confirming))
        show_comparison(self.console, comparison(confirming, result.records), study.score_name)
        return 0 if result.whole else 3

    def _show_plan(self, planned: dict[int, TrainConfig]) -> None:
        per_epoch = self.ready.samples_per_epoch
        if self.options.dry_run:
            self.console.print(tree_view(self.ready.config.name, plan_tree(planned, per_epoch), planned))
        known = "the trials" if self.options.search == "random" else "as many random trials"
        found = saving(planned, per_epoch)
        does = "saves" if self.options.share else "would save"
        say(
            self.console,
            f"{known}: {len(planned)}, {pixels(found.alone)} one by one, {pixels(found.shared)} with equal stages "
            f"trained once: sharing {does} {found.fraction:.1%}",
        )


def pixels(cost: float) -> str:
    """Return 4.1e6 as `4.1 megapixels`."""
    power = 12 if cost >= 1e12 else 9 if cost >= 1e9 else 6
    return f"{cost / 10**power:.3g} {({6: 'mega', 9: 'giga', 12: 'tera'})[power]}pixels"


def tree_view(name: str, nodes: Sequence[Node], planned: dict[int, TrainConfig]) -> Tree:
    """Return the stages of all trials as a tree; costs are images times pixels."""
    tree = Tree(f"{name}: stages, their cost (images x pixels), trials")

    def grow(branch: Tree, node: Node) -> None:
        config = planned[node.trials[0]]
        stage = config.stages[node.stage]
        size = format_size(stage.image_size, config.data.aspect_ratio)
        text = (
            f"stage {node.stage + 1}: {size} px, RandAugment {stage.randaugment_magnitude:.3g}, Mixup "
            f"{stage.mixup_alpha:.3g}, dropout {stage.dropout:.3g}: {pixels(node.cost)}"
        )
        if len(node.trials) > 1:
            text += f", once for {len(node.trials)} trials"
        elif not node.children:
            text += f", trial {node.trials[0]}"
        below = branch.add(text)
        for child in node.children:
            grow(below, child)

    for node in nodes:
        grow(tree, node)
    return tree


if __name__ == "__main__":
    run_main(main)

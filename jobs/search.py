"""Search for an architecture around a recipe's: `python -m jobs.search RECIPE [--field value ...]`.

Run the same command again to resume a search that was stopped or killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from infra.storage.open import open_storage
from jobs.common.cli import default_config, parse_recipe, recipe_words, resolve, run_main
from jobs.common.display import say, wide_console
from jobs.common.facts import record_facts
from jobs.common.parsing import UsageError
from jobs.common.study_run import train_study
from model.config import ModelConfig, architecture_of
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight, preflight
from pipeline.sweep.config import SearchOptions

if TYPE_CHECKING:
    from pipeline.search.timing import Timing
    from pipeline.sweep.strategy import Point
    from pipeline.sweep.study import Study


def main(argv: Sequence[str]) -> int:
    """Time the blocks, train the candidates, report. Exit code 1: none was finished; 3: stopped before its end."""
    argv = resolve(argv, suffix="-search").argv
    config, options = parse_recipe(argv, prog="python -m jobs.search", extra=SearchOptions)
    assert options is not None
    if config.name == default_config(argv).name:
        config = replace(config, name=f"{config.name}-search")
    if not config.checkpoint.best_metric or config.checkpoint.best_is != "highest":
        raise ValueError(
            "checkpoint.best_metric must be one that is best when highest: the reward is a product with it"
        )
    recipe = recipe_words(argv, SearchOptions)
    ready = preflight(short_run(config, options))
    record_facts(argv, ready.config.storage, config.name)
    return _Search(wide_console(), recipe, ready, options).run()


def short_run(config: TrainConfig, options: SearchOptions) -> TrainConfig:
    """Return the run of a candidate: the recipe's first stage alone, for a few epochs."""
    stage = config.stages[0]
    stage = replace(stage, epochs=options.epochs, image_size=options.image_size or stage.image_size)
    warmup = min(config.optimizer.warmup_epochs, options.epochs / 4)
    return replace(config, stages=(stage,), optimizer=replace(config.optimizer, warmup_epochs=warmup))


class _Search:
    """A search on its way."""

    def __init__(self, console: Console, recipe: str, ready: Preflight, options: SearchOptions) -> None:
        self.console, self.recipe, self.ready, self.options = console, recipe, ready, options
        self.config = ready.config
        architecture = architecture_of(self.config.model)
        if architecture is None:
            raise UsageError(f"model.name is {self.config.model.name}: only EfficientNets have rows to search over")
        self.base: tuple[Block, ...] = architecture.blocks

    def run(self) -> int:
        """Time the blocks, train the candidates, report."""
        from infra.cluster.connect import connect
        from jobs.common.study_report import search_files, show_search
        from pipeline.sweep.study import open_ledger

        connect(self.config.cluster, num_workers=max(self.config.worker_counts))
        study = self._study(self._timed())
        result = train_study(
            self.console,
            study,
            self.options,
            open_ledger(study),
            files=lambda records: search_files(study, records, self.recipe, self._rows),
        )
        show_search(self.console, study, result.records, self.recipe, self._rows)
        return 3 if not result.whole else 0 if study.best(result.records) else 1

    def _timed(self) -> Timing:
        """Return the blocks' times, measured once."""
        from pipeline.search.timing import timing

        found = timing(
            self.config,
            self.base,
            open_storage(self.config.folder),
            num_classes=len(self.ready.train.classes),
            repeats=self.options.latency_repeats,
            checks=self.options.latency_checks,
        )
        say(
            self.console,
            f"base step {found.base_s * 1e3:.1f} ms; the block table's mean error against {len(found.checks)} "
            f"candidates timed as a whole: {found.error:.1%}",
        )
        return found

    def _study(self, found: Timing) -> Study:
        from pipeline.search import space
        from pipeline.search.reward import reward
        from pipeline.sweep.strategy import make_strategy
        from pipeline.sweep.study import Study

        options, distributions = self.options, space.distributions(self.base)
        metric = self.config.checkpoint.best_metric
        return Study(
            kind="search",
            base=self.config,
            space=distributions,
            strategy=make_strategy(
                options.search, distributions, seed=options.search_seed, highest=True, max_trials=options.max_trials
            ),
            first=space.point_of(self.base),
            configure=lambda point: replace(self.config, model=self._model(self._rows(point))),
            figures=partial(self._figures, found, self._parameters(self.base)),
            score=lambda metrics, figures: reward(metrics[metric], figures["step_ratio"], figures["parameter_ratio"]),
            score_name="reward",
            plan={"search": options.search, "search_seed": options.search_seed},
        )

    def _figures(self, found: Timing, base_parameters: int, point: Point) -> dict[str, float]:
        """Return what is known of a candidate without training; ratios are to the base."""
        rows = self._rows(point)
        step_s, parameters = found.table.estimate(rows), self._parameters(rows)
        return {
            "step_ms": 1e3 * step_s,
            "step_ratio": step_s / found.base_s,
            "parameters": parameters,
            "parameter_ratio": parameters / base_parameters,
        }

    def _rows(self, point: Point) -> tuple[Block, ...]:
        from pipeline.search.space import rows_of

        return rows_of(self.base, point)

    def _model(self, rows: tuple[Block, ...]) -> ModelConfig:
        return replace(self.config.model, rows=rows, fused_rows=())

    def _parameters(self, rows: tuple[Block, ...]) -> int:
        import torch

        from model.cost import count_parameters
        from model.factory import build_model

        with torch.device("meta"):
            return count_parameters(build_model(self._model(rows), num_classes=len(self.ready.train.classes)))


if __name__ == "__main__":
    run_main(main)

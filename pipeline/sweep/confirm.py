"""Trains a sweep's winner and the recipe's own values with further seeds, as a study of its own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from optuna.distributions import CategoricalDistribution, IntDistribution

from pipeline.config import TrainConfig
from pipeline.sweep.ledger import Record
from pipeline.sweep.strategy import Point
from pipeline.sweep.study import Study
from pipeline.sweep.tree import shared_prefixes

RECIPE, WINNER = "recipe", "winner"


class ListedPoints:
    """A strategy that gives the points of a list, one after the other."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points, self._next = list(points), 0

    def ask(self) -> Point:
        """Return the next point of the list, after the last one the first."""
        self._next += 1
        return self._points[(self._next - 1) % len(self._points)]

    def tell(self, point: Point, scores: Sequence[float], *, finished: bool) -> None:
        """Nothing is learned."""


def confirmation(study: Study, winner: Point, num_seeds: int, *, share: bool) -> tuple[Study, int]:
    """Return the study that trains recipe and winner over the seeds after the study's own, and its trials."""
    base = study.base
    seeds = range(base.seed + 1, base.seed + 1 + num_seeds)
    points = [{"seed": seed, "values": values} for seed, values in product(seeds, (RECIPE, WINNER))]

    def configure(point: Point) -> TrainConfig:
        config = study.configure(winner) if point["values"] == WINNER else base
        return replace(config, seed=point["seed"])

    return Study(
        kind="confirmation",
        base=replace(base, name=f"{base.name}-confirm"),
        space={
            "seed": IntDistribution(seeds[0], seeds[-1]),
            "values": CategoricalDistribution((RECIPE, WINNER)),
        },
        strategy=ListedPoints(points),
        configure=configure,
        score=study.score,
        score_name=study.score_name,
        highest=study.highest,
        shared=shared_prefixes(configure(point) for point in points) if share else frozenset(),
        plan={"winner": {name: repr(value) for name, value in winner.items()}},
    ), len(points)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Scores of both, by seed."""

    recipe: dict[int, float]
    winner: dict[int, float]

    @property
    def difference(self) -> float:
        """Mean of winner - recipe over the seeds that both have."""
        return statistics.mean(self._differences())

    @property
    def standard_error(self) -> float:
        """Standard error of that mean; NaN for one seed."""
        found = self._differences()
        return statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")

    def _differences(self) -> list[float]:
        return [self.winner[seed] - self.recipe[seed] for seed in self.recipe if seed in self.winner]


def comparison(study: Study, records: Sequence[Record]) -> Confirmation:
    """Return what a confirmation gave."""
    found: dict[str, dict[int, float]] = {RECIPE: {}, WINNER: {}}
    for record in records:
        if record.state == "finished":
            found[record.point["values"]][record.point["seed"]] = study.scores(record)[-1]
    return Confirmation(found[RECIPE], found[WINNER])

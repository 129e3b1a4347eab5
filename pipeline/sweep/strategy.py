"""Strategies that propose trials and learn from results: random, Optuna's TPE, evolution. No Ray."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

optuna.logging.set_verbosity(optuna.logging.WARNING)

Point = dict[str, Any]
Space = Mapping[str, BaseDistribution]


class Strategy(Protocol):
    """Chooses points. It may be asked again before it was told of an earlier one."""

    def ask(self) -> Point:
        """Return the next point to try."""

    def tell(self, point: Point, scores: Sequence[float], *, finished: bool) -> None:
        """Learn what a point gave: its score at each stage's end, or nothing at all if it failed."""


class OptunaStrategy:
    """One of Optuna's samplers."""

    def __init__(self, space: Space, sampler: optuna.samplers.BaseSampler, *, highest: bool) -> None:
        self._space = dict(space)
        self.study = optuna.create_study(direction="maximize" if highest else "minimize", sampler=sampler)
        self._asked: dict[str, optuna.trial.Trial] = {}

    def ask(self) -> Point:
        """Return the sampler's choice."""
        trial = self.study.ask(self._space)
        self._asked[point_key(trial.params)] = trial
        return dict(trial.params)

    def tell(self, point: Point, scores: Sequence[float], *, finished: bool) -> None:
        """Tell Optuna; a trial that was ended early counts as pruned, with what it had reached."""
        states = optuna.trial.TrialState
        state = states.COMPLETE if finished and scores else states.PRUNED if scores else states.FAIL
        value = scores[-1] if state is states.COMPLETE else None
        trial = self._asked.pop(point_key(point), None)
        if trial is not None:
            for stage, score in enumerate(scores):
                trial.report(score, stage)
            self.study.tell(trial, value, state=state)
            return
        self.study.add_trial(
            optuna.trial.create_trial(
                params=point,
                distributions=self._space,
                value=value,
                state=state,
                intermediate_values=dict(enumerate(scores)),
            )
        )


class RandomStrategy:
    """Independent points: the n-th is a function of the seed and n, so all of them are known beforehand."""

    def __init__(self, space: Space, *, seed: int) -> None:
        self._space, self._seed, self._next = space, seed, 0

    def ask(self) -> Point:
        """Return the next point."""
        self._next += 1
        return random_point(self._space, random.Random(f"{self._seed}/{self._next}"))

    def tell(self, point: Point, scores: Sequence[float], *, finished: bool) -> None:
        """Nothing is learned."""


class EvolutionStrategy:
    """Regularized evolution (arXiv 1802.01548): a child of the best of `SAMPLE` random ones; the oldest die.

    The first `population` points are random. Only points with a score live.
    """

    SAMPLE = 3

    def __init__(self, space: Space, *, seed: int, highest: bool, population: int) -> None:
        self._space, self._random, self._sign = space, random.Random(f"evolution/{seed}"), 1 if highest else -1
        self._population, self._told, self._asked = population, 0, 0
        self.living: list[tuple[float, Point]] = []

    def ask(self) -> Point:
        """Return a random point at first, then a mutated one."""
        self._asked += 1
        if max(self._asked, self._told) <= self._population or not self.living:
            return random_point(self._space, self._random)
        sample = self._random.sample(self.living, min(self.SAMPLE, len(self.living)))
        return mutated(max(sample, key=lambda item: item[0])[1], self._space, self._random)

    def tell(self, point: Point, scores: Sequence[float], *, finished: bool) -> None:
        """Add a point to the living; the oldest beyond the population dies."""
        self._told += 1
        if scores and finished:
            self.living = [*self.living, (self._sign * scores[-1], point)][-self._population :]


def make_strategy(
    kind: Literal["random", "tpe", "evolution"], space: Space, *, seed: int, highest: bool, max_trials: int
) -> Strategy:
    """Return the strategy of a name."""
    if kind == "random":
        return RandomStrategy(space, seed=seed)
    if kind == "evolution":
        return EvolutionStrategy(space, seed=seed, highest=highest, population=max(2, min(8, max_trials // 2)))
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=max(3, min(10, max_trials // 3)), multivariate=True, constant_liar=True
    )
    return OptunaStrategy(space, sampler, highest=highest)


def random_point(space: Space, source: random.Random) -> Point:
    """Draw one value of each distribution."""
    return {name: random_value(distribution, source) for name, distribution in space.items()}


def mutated(point: Point, space: Space, source: random.Random) -> Point:
    """Return the point with one value redrawn, different from before."""
    name = source.choice([name for name, distribution in space.items() if not distribution.single()])
    value = point[name]
    while value == point[name]:
        value = random_value(space[name], source)
    return point | {name: value}


def random_value(distribution: BaseDistribution, source: random.Random) -> Any:
    """Draw a value of one distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return source.choice(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return source.randrange(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    if distribution.log:
        return math.exp(source.uniform(math.log(distribution.low), math.log(distribution.high)))
    if distribution.step is not None:
        steps = round((distribution.high - distribution.low) / distribution.step)
        return distribution.low + distribution.step * source.randint(0, steps)
    return source.uniform(distribution.low, distribution.high)


def point_key(point: Mapping[str, Any]) -> str:
    """Return what is equal for equal points."""
    return repr(sorted(point.items()))

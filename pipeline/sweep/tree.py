"""Plans which trials share their first stages, and what that saves. Starts no run.

A stage's weights depend on all that came before it and on nothing that comes after it, the run's length aside (a cosine
ends with the run). So trials that are equal up to a stage's end are one run up to there, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipeline.config import TrainConfig
from pipeline.run.provenance import breaking, flat_values, recorded_config, without_younger
from pipeline.schedule.schedule import TrainingSchedule


def prefix_key(config: TrainConfig, num_stages: int) -> str:
    """Return what is equal for exactly the configs whose first `num_stages` stages are the same training."""
    values = flat_values(recorded_config(prefix_config(config, num_stages)))
    counted = breaking({key: (None, value) for key, value in without_younger(values).items() if key != "name"})
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:10]


def prefix_config(config: TrainConfig, num_stages: int) -> TrainConfig:
    """Return the config of the run that trains a shared start: what comes after it is only there for the length."""
    last = config.stages[num_stages - 1]
    rest = tuple(
        replace(last, epochs=stage.epochs, batch_size=stage.batch_size) for stage in config.stages[num_stages:]
    )
    return replace(config, stages=config.stages[:num_stages] + rest)


def prefix_keys(config: TrainConfig) -> list[str]:
    """Return the keys of the config's starts of 1, 2, ... stages; the whole run is the last."""
    return [prefix_key(config, count) for count in range(1, len(config.stages) + 1)]


def shared_prefixes(configs: Iterable[TrainConfig]) -> frozenset[str]:
    """Return the keys of the starts that are to be runs of their own: more than one trial resumes from each.

    A start that all its trials leave together is not one: the longer start that they share contains it.
    """
    paths = {tuple(prefix_keys(config)) for config in configs}
    counts = Counter(key for path in paths for key in path[:-1])
    shared = set()
    for path in paths:
        for key, longer in pairwise(path):
            if counts[key] > 1 and counts.get(longer, 0) < counts[key]:
                shared.add(key)
    return frozenset(shared)


@dataclass(frozen=True, slots=True)
class Node:
    """A stage as it is trained for some trials."""

    stage: int
    """Index of the stage."""
    key: str
    trials: tuple[int, ...]
    """Numbers of the trials that go through it."""
    cost: float
    """Images times pixels of training it once."""
    children: tuple[Node, ...]

    @property
    def total(self) -> float:
        """Cost of this stage and of all that follows."""
        return self.cost + sum(child.total for child in self.children)


def plan_tree(configs: Mapping[int, TrainConfig], samples_per_epoch: int) -> tuple[Node, ...]:
    """Return the first stages of all trials, by trial number; equal ones are one node."""
    paths = {number: prefix_keys(config) for number, config in configs.items()}
    return _nodes(configs, paths, samples_per_epoch, sorted(configs), 0)


def _nodes(
    configs: Mapping[int, TrainConfig],
    paths: Mapping[int, Sequence[str]],
    samples_per_epoch: int,
    numbers: Sequence[int],
    stage: int,
) -> tuple[Node, ...]:
    groups: dict[str, list[int]] = {}
    for number in numbers:
        if stage < len(paths[number]):
            groups.setdefault(paths[number][stage], []).append(number)
    return tuple(
        Node(
            stage,
            key,
            tuple(group),
            stage_costs(configs[group[0]], samples_per_epoch)[stage],
            _nodes(configs, paths, samples_per_epoch, group, stage + 1),
        )
        for key, group in groups.items()
    )


def stage_costs(config: TrainConfig, samples_per_epoch: int) -> list[float]:
    """Return each stage's images times pixels."""
    spans = TrainingSchedule(config.stages, samples_per_epoch).spans
    return [(span.stop - span.start) * span.stage.mean_pixels(config.data.aspect_ratio) for span in spans]


@dataclass(frozen=True, slots=True)
class Saving:
    """What sharing saves, in images times pixels."""

    alone: float
    """Every trial trains all of its stages."""
    shared: float
    """Equal starts are trained once."""

    @property
    def fraction(self) -> float:
        """Share of the work that is not done."""
        return 1 - self.shared / self.alone if self.alone else 0.0


def saving(configs: Mapping[int, TrainConfig], samples_per_epoch: int) -> Saving:
    """Return the cost of all trials, each alone and with equal starts shared."""
    alone = sum(sum(stage_costs(config, samples_per_epoch)) for config in configs.values())
    return Saving(alone, sum(node.total for node in plan_tree(configs, samples_per_epoch)))

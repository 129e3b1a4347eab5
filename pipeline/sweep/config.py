"""Options of a sweep and of a search. Light to import, since command lines need it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

PLAN_FILE = "study.json"
"""In a study's folder: what it began with."""


def trial_name(study: str, number: int) -> str:
    """Return the name of a trial's run."""
    return f"{study}-{number:03d}"


def start_name(study: str, key: str) -> str:
    """Return the name of the run of a start that trials share."""
    return f"{study}-start-{key}"


def is_of_study(run: str, study: str) -> bool:
    """Say whether a run is a study's, by its name."""
    return re.fullmatch(rf"{re.escape(study)}-(\d+|start-[0-9a-f]+)", run) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions:
    """How trials are chosen, how many, and how long."""

    max_trials: int = 12
    """Number of trials, including the recipe's own values, which are the first. The same command with a larger number
    continues."""
    max_hours: float = 0.0
    """Time limit of this submission, in hours; running trials are saved, and the next submission resumes them. 0:
    none."""
    concurrent: int = 0
    """Trials at a time, at most as many as fit into the cluster. 0: as many as fit."""
    search_seed: int = 0
    """Seed of the choice of trials. Every trial trains with the seed `seed`."""
    max_failures: int = 2
    """How often a trial that dies is resumed from its checkpoint."""

    def __post_init__(self) -> None:
        if self.max_trials < 1:
            raise ValueError(f"max_trials is {self.max_trials}: it must be at least 1")
        for name in ("max_hours", "concurrent", "max_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions(StudyOptions):
    """Options of a sweep."""

    search: Literal["random", "tpe"] = "random"
    """How trials are chosen: at random, or by Optuna's TPE from the results of earlier ones."""
    scheduler: Literal["none", "asha", "halving"] = "none"
    """How trials are ended after a stage. none: all train to the end; asha: a trial ends at once if it is not among the
    best 1/eta so far; halving: all trials wait for each other, then the best 1/eta continue."""
    eta: int = 2
    """Reduction factor: one in `eta` trials continues after a stage."""
    share: bool = True
    """Train first stages that several trials have in common only once."""
    confirm: int = 0
    """After the sweep, train the winner and the recipe's own values with this many further seeds, and compare them."""
    dry_run: bool = False
    """Print the tree of stages and its cost, and start nothing."""

    def __post_init__(self) -> None:
        StudyOptions.__post_init__(self)
        if self.eta < 2:
            raise ValueError(f"eta is {self.eta}: it must be at least 2")
        if self.confirm < 0:
            raise ValueError(f"confirm is {self.confirm}: it must be 0 (off) or a number of seeds")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions(StudyOptions):
    """Options of an architecture search."""

    max_trials: int = 20
    """Number of candidates, including the base table, which is the first. The same command with a larger number
    continues."""
    search: Literal["random", "evolution", "tpe"] = "evolution"
    """How candidates are chosen: at random, by regularized evolution, or by Optuna's TPE."""
    epochs: float = 6.0
    """Length of a candidate's training, in epochs."""
    image_size: int = 0
    """Image size of a candidate's training, in pixels. 0: that of the recipe's first stage."""
    latency_repeats: int = 7
    """Timed steps for each entry of the latency table, of which the median counts."""
    latency_checks: int = 6
    """Random candidates that are also timed as a whole, to measure the table's error."""

    def __post_init__(self) -> None:
        StudyOptions.__post_init__(self)
        if not self.epochs > 0:
            raise ValueError(f"epochs is {self.epochs}: candidates need a length above 0")
        for name, low in (("image_size", 0), ("latency_repeats", 1), ("latency_checks", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {low}")

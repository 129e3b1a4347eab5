"""Options of a sweep and of a search. Light to import, as everything that a command line needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


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
    """Trials, the recipe's own values being the first. The same command with a larger number continues."""
    max_hours: float = 0.0
    """Longest time of this submission, in hours; trials that run then are saved and resumed by the next. 0: none."""
    concurrent: int = 0
    """Trials at a time; never more than the cluster has workers for. 0: as many as that."""
    search_seed: int = 0
    """Seed of the choice of trials. The seed of training is `seed`, and is every trial's."""
    max_failures: int = 2
    """How often a trial that dies is taken up again from its checkpoint."""

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
    """Where trials come from: drawn at random, or chosen by Optuna's TPE from what earlier ones gave."""
    scheduler: Literal["none", "asha", "halving"] = "none"
    """What ends trials at a stage's end: nothing; asha: at once, those that are not in the best 1/eta so far; halving:
    all trials wait for each other, then the best 1/eta continue."""
    eta: int = 2
    """Reduction factor: of so many trials, one continues after a stage at which trials end."""
    share: bool = True
    """Train equal first stages of several trials once, and resume from there."""
    confirm: int = 0
    """After the sweep, train its winner and the recipe's own values over so many further seeds, and compare."""
    dry_run: bool = False
    """Print the tree of stages and what it costs; start nothing."""

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
    """Candidates, the base table being the first. The same command with a larger number continues."""
    search: Literal["random", "evolution", "tpe"] = "evolution"
    """Where candidates come from: drawn at random, regularized evolution, or Optuna's TPE."""
    epochs: float = 6.0
    """Length of a candidate's training."""
    image_size: int = 0
    """Image size of a candidate's training, in pixels. 0: the recipe's first stage's."""
    latency_repeats: int = 7
    """Steps that are timed for each entry of the latency table; their median is taken."""
    latency_checks: int = 6
    """Random candidates that are timed as a whole as well, to know the table's error."""

    def __post_init__(self) -> None:
        StudyOptions.__post_init__(self)
        if not self.epochs > 0:
            raise ValueError(f"epochs is {self.epochs}: candidates need a length above 0")
        for name, low in (("image_size", 0), ("latency_repeats", 1), ("latency_checks", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {low}")

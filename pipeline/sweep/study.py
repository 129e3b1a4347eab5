"""A study: trials over a space, each a complete training run, through Ray Tune. Sweeps and searches are studies.

What Tune is for here: how many trials run, which are ended early, which are tried again. What outlives it is ours: the
ledger says what was tried, and a trial's run has its own checkpoints. So a study that is killed anywhere resumes by the
same command on any machine, and nothing that is finished runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.storage.base import Storage
from infra.storage.open import open_storage
from pipeline.config import TrainConfig
from pipeline.run.provenance import recorded_config
from pipeline.sweep.config import trial_name
from pipeline.sweep.ledger import Ledger, Record
from pipeline.sweep.strategy import Point, Space, Strategy

MAX_REPEATS = 1000
"""A strategy that gives only known points so often in a row has no new ones: the space is used up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is tried, and how it is judged."""

    kind: str
    """sweep or search."""
    base: TrainConfig
    """The recipe's config, with absolute paths; its name is the study's."""
    space: Space
    strategy: Strategy
    first: Point | None = None
    """The recipe's own point, which is tried first."""
    configure: Callable[[Point], TrainConfig]
    """A point's run. Its name, and where it is recorded, are the study's to say."""
    figures: Callable[[Point], dict[str, float]] = lambda point: {}
    """What is known of a point without training."""
    score: Callable[[dict[str, float], dict[str, float]], float]
    """A stage's metrics and the point's figures -> what is to be highest or lowest."""
    score_name: str
    """What a score is called."""
    highest: bool = True
    shared: frozenset[str] = frozenset()
    """Starts that are runs of their own."""
    scheduler: Literal["none", "asha", "halving"] = "none"
    """What ends trials early."""
    eta: int = 2
    """Reduction factor: of so many trials, one continues."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What must be the same when the study continues, besides the config."""

    def scores(self, record: Record) -> list[float]:
        """Return a trial's score at each stage's end."""
        return [self.score(stage, record.figures) for stage in record.stages]

    def best(self, records: Sequence[Record]) -> list[Record]:
        """Return the finished trials, best first."""
        finished = [record for record in records if record.state == "finished"]
        return sorted(finished, key=lambda record: self.scores(record)[-1], reverse=self.highest)

    @property
    def storage(self) -> Storage:
        """The folder of the study itself."""
        return open_storage(self.base.folder)


def open_ledger(study: Study, *, dry_run: bool = False) -> Ledger:
    """Return the study's ledger, and tell the strategy what is in it. A dry run writes nothing.

    Raises:
        StudyError: the study was begun with other settings.
    """
    ledger = Ledger(study.storage)
    ledger.open({"kind": study.kind, "config": recorded_config(study.base), **study.plan}, dry_run=dry_run)
    for record in ledger.records:
        if record.state in ("finished", "stopped"):
            study.strategy.tell(record.point, study.scores(record), finished=record.state == "finished")
    return ledger


def next_record(study: Study, ledger: Ledger, max_trials: int) -> Record | None:
    """Choose the next new trial and write it down; None when there are enough, or no new points."""
    if len(ledger.records) >= max_trials:
        return None
    number = len(ledger.records)
    point = study.first if number == 0 and study.first is not None else None
    for _ in range(MAX_REPEATS):
        point = study.strategy.ask() if point is None else point
        known = ledger.find(point)
        if known is None:
            name = trial_name(study.base.name, number)
            record = Record(number=number, name=name, point=point, figures=study.figures(point))
            ledger.add(record)
            return record
        if known.state in ("finished", "stopped"):  # what it gave, again; it isn't trained again
            study.strategy.tell(point, study.scores(known), finished=known.state == "finished")
        point = None
    return None


def planned_points(study: Study, records: Sequence[Record], max_trials: int, strategy: Strategy) -> list[Point]:
    """Return the points of the trials so far, and of those that `strategy` would choose next, without repeats."""
    points = [record.point for record in records]
    if not points and study.first is not None:
        points.append(study.first)
    for _ in range(MAX_REPEATS):
        if len(points) >= max_trials:
            break
        point = strategy.ask()
        if point not in points:
            points.append(point)
    return points

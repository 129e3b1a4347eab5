"""A run's state without its tensors: cursor, stages, decisions, evaluations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class TrainState:
    """What a run is, besides its tensors. The cursor is the only data state there is."""

    cursor: int = 0
    """Samples consumed since the run's start, over all workers."""
    step: int = 0
    """Optimizer steps taken."""
    stage_starts: list[int] = field(default_factory=lambda: [0])
    """Cursor at which each stage so far began."""
    stage_results: list[dict[str, float]] = field(default_factory=lambda: [{}])
    """Per stage so far: when it began and ended (Unix time), training and evaluation time, memory, samples of a pass on
    one worker (`micro_batch`), and the newest metrics."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Everything that was decided, with its cursor; a resumed run repeats it."""

    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Every evaluation's cursor, stage and workers, the losses and the metrics that the adaptive rules and a comparison
    look at, and the seconds since the run's start of training (`train_s`, `cpu_s`) and of evaluating (`eval_s`)."""
    since_evaluation: dict[str, float] = field(default_factory=dict)
    """Sum of the training loss over the steps since the last evaluation, and their number."""
    micro_limits: list[int] = field(default_factory=list)
    """Per stage: most samples of a forward pass on one worker, as they were found to fit; empty: not looked for."""
    damaged: list[int] = field(default_factory=lambda: [0, 0])
    """The epoch that is on, from 0, and how many of its samples up to the cursor were damaged, over all workers."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """The newest evaluation: its metrics, and the `cursor` at which it was made."""

    @property
    def trained_stage(self) -> int:
        """Index of the stage that the last sample was of; that of the first stage before any."""
        return max(0, sum(start < self.cursor for start in self.stage_starts) - 1)

    def metrics_here(self) -> dict[str, float]:
        """Return the metrics that were measured at this very cursor; empty when there was no evaluation."""
        if self.evaluation.get("cursor") != self.cursor:
            return {}
        return {name: value for name, value in self.evaluation.items() if name != "cursor"}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values of their own."""
        return asdict(self)

"""`RunPlan`: what a controller has trained."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.control.run_status import RunIdentity
from pipeline.schedule.stages import AdaptiveConfig, Segment, TrainingStage, Workers, segments


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What a controller has trained: a run, or a part of one."""

    identity: RunIdentity
    """Which run it is."""
    stages: tuple[TrainingStage, ...]
    """All stages of the recipe."""
    num_workers: Workers
    """Workers of stages that don't name their own number."""
    rules: AdaptiveConfig
    num_stages: int = 0
    """Train only so many stages, from the recipe's first one on; 0: all."""
    first_stage: int = 0
    """Index of the stage that comes next."""

    @property
    def segments(self) -> list[Segment]:
        """The segments that are left to train."""
        stages = self.stages[: self.num_stages or None]
        return [segment for segment in segments(stages, self.num_workers) if segment.last >= self.first_stage]

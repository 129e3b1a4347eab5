"""Decisions as data: pure functions from what is known about a run to what happens next."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Decision(Enum):
    """What all ranks do at a decision point. NEW_GROUP: save and end, so that a group of another size can go on."""

    CONTINUE = "continue"
    NEXT_STAGE = "next_stage"
    NEW_GROUP = "new_group"
    CHECKPOINT = "checkpoint"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What rank 0 tells the controller at a decision point."""

    cursor: int
    """Samples consumed since the run's start, over all workers."""
    stage: int
    """Index of the stage that is on."""
    stage_start: int
    """Cursor at which the stage began."""
    stage_stop: int
    """Cursor at which the stage ends by itself."""
    total: int
    """Cursor at which the run ends if no stage is ended early."""
    samples_per_epoch: int
    """Samples of one epoch."""
    num_workers: int
    """Ranks of the worker group."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest metrics, by name."""
    stage_results: tuple[dict[str, float], ...] = ()
    """Per stage so far: times in seconds and the newest metrics."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asked for."""

    decision: Decision
    """Any decision but CONTINUE."""
    stage: int
    """The stage that was on when it was asked: `advance` must not skip two stages when a restart repeats it."""


def decide(progress: Progress, requests: list[Request]) -> Decision:
    """Choose the next step of a run: the strongest request that still applies, else go on.

    A stop outweighs an advance, an advance a new group, that a checkpoint. An advance is for the stage in which it was
    asked.
    """
    asked = {request.decision for request in requests if _applies(request, progress)}
    for decision in (Decision.STOP, Decision.NEXT_STAGE, Decision.NEW_GROUP, Decision.CHECKPOINT):
        if decision in asked:
            return decision
    return Decision.CONTINUE


def _applies(request: Request, progress: Progress) -> bool:
    return request.decision is not Decision.NEXT_STAGE or request.stage == progress.stage

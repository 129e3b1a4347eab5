"""Decides what happens next in a run: pure functions from its progress to decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipeline.schedule.adaptive import next_regularization, plateau
from pipeline.schedule.decisions import (
    Checkpoint,
    Decision,
    ExtendStage,
    NewGroup,
    NextStage,
    Pause,
    Resume,
    Stop,
    in_order,
)
from pipeline.schedule.stages import AdaptiveConfig, StageSpan, TrainingStage


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What rank 0 tells the controller at a decision point."""

    cursor: int
    """Samples consumed since the run's start, over all workers."""
    stage: int
    """Index of the current stage."""
    spans: tuple[StageSpan, ...]
    """All stages, as they were and as they are planned now."""
    samples_per_epoch: int
    """Samples of one epoch."""
    num_workers: int
    """Ranks of the worker group."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest metrics, by name."""
    stage_results: tuple[dict[str, float], ...] = ()
    """Per stage so far: times in seconds and the newest metrics."""
    evaluations: tuple[dict[str, float], ...] = ()
    """The evaluations of this stage, oldest first: what the rules look at."""
    settings: dict[str, float] = field(default_factory=dict)
    """Values of the live fields."""
    paused: bool = False
    """Whether all ranks wait for an operator."""
    num_replayed: int = 0
    """Decisions in the training state that a resumed run repeats."""
    decisions: tuple[dict[str, Any], ...] = ()
    """The newest recorded decisions."""

    @property
    def span(self) -> StageSpan:
        """The current stage."""
        return self.spans[self.stage]


class OperatorRequest(NamedTuple):
    """What an operator asked for."""

    decision: Decision
    stage: int
    """The stage that was on when it was asked: an advance must not end the one after it."""


class PolicyVerdict(NamedTuple):
    """What happens at a decision point."""

    decisions: tuple[Decision, ...]
    """What all ranks do now, in order; nothing: continue."""
    waiting: tuple[OperatorRequest, ...]
    """Requests that are still to be carried out."""


def decide(
    recipe: Sequence[TrainingStage], rules: AdaptiveConfig, progress: Progress, requests: Sequence[OperatorRequest] = ()
) -> PolicyVerdict:
    """Say what happens at a decision point: what was asked for, and what the recipe's rules say.

    Args:
        recipe: the stages as the recipe has them.
        rules: the recipe's adaptive rules.
        progress: where the run is.
        requests: what was asked for and is not carried out yet, oldest first.
    """
    now, waiting = _due(progress, requests)
    asked = [request.decision for request in now]
    extended = any(isinstance(decision, ExtendStage) for decision in asked)
    advance = next((decision for decision in asked if isinstance(decision, NextStage)), None)
    if advance is None and not progress.paused and not extended and (reason := _stage_is_over(rules, progress)):
        advance = NextStage(reason=reason)
    others = [decision for decision in asked if not isinstance(decision, NextStage)]
    ended = [] if advance is None else [_with_values(advance, recipe, rules, progress)]
    return PolicyVerdict(in_order([*others, *ended]), waiting)


def _due(
    progress: Progress, requests: Sequence[OperatorRequest]
) -> tuple[list[OperatorRequest], tuple[OperatorRequest, ...]]:
    """Split what was asked for into what is carried out now and what waits; drop what has lost its meaning."""
    now: list[OperatorRequest] = []
    waiting: list[OperatorRequest] = []
    last_pause = [request for request in requests if isinstance(request.decision, Pause | Resume)][-1:]
    seen: set[type[Decision]] = set()
    for request in requests:
        decision = request.decision
        if isinstance(decision, NextStage | ExtendStage) and request.stage != progress.stage:
            if request.stage > progress.stage:  # the run went back; it will get there again
                waiting.append(request)
            continue
        if isinstance(decision, Pause | Resume) and (
            [request] != last_pause or isinstance(decision, Pause) == progress.paused
        ):
            continue
        if isinstance(decision, NextStage | NewGroup | Checkpoint | Stop | Pause | Resume):
            if type(decision) in seen:
                continue
            seen.add(type(decision))
        held = progress.paused and isinstance(decision, NextStage)
        (waiting if held else now).append(request)
    return now, tuple(waiting)


def _stage_is_over(rules: AdaptiveConfig, progress: Progress) -> str:
    """Say why the stage ends by itself at this decision point, or nothing."""
    span = progress.span
    if progress.cursor >= span.stop:
        return "its length is reached"
    epochs = (progress.cursor - span.start) / progress.samples_per_epoch
    last = progress.stage == len(progress.spans) - 1
    if not rules.plateau or epochs < rules.min_epochs or (last and rules.unused == "later"):
        return ""
    return plateau(rules, progress.evaluations, int(progress.settings.get("patience", rules.patience)))


def _with_values(
    advance: NextStage, recipe: Sequence[TrainingStage], rules: AdaptiveConfig, progress: Progress
) -> NextStage:
    """Return the end of a stage with what the recipe's rules say about the stages after it."""
    advance = replace(advance, pass_on=rules.unused == "later" and progress.cursor < progress.span.stop)
    if not rules.closed_loop or progress.stage == len(recipe) - 1:
        return advance
    values, why = next_regularization(rules, recipe, progress.span.stage, progress.evaluations)
    return replace(advance, values=values, reason="; ".join(filter(None, (advance.reason, why))))

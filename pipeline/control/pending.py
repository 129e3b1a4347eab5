"""The decisions for a run's next decision point: repeated ones, operators' requests, and those of the rules."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from pipeline.control.journal import Journal
from pipeline.schedule.decisions import (
    Decision,
    DecisionRecord,
    ExtendStage,
    NewGroup,
    NextStage,
    Pause,
    Resume,
    in_order,
)
from pipeline.schedule.policy import OperatorRequest, Progress, decide
from pipeline.schedule.stages import AdaptiveConfig, TrainingStage


class PendingDecisions:
    """The decisions that a run's controller has before it. Its methods are called with the controller's lock held.

    Args:
        recipe: all stages of the recipe.
        rules: the recipe's adaptive rules.
        journal: decisions that a run which went back repeats, and what an earlier controller was asked for.
        note: tells the user a line.
    """

    def __init__(
        self,
        recipe: tuple[TrainingStage, ...],
        rules: AdaptiveConfig,
        journal: Journal,
        note: Callable[[str], None],
    ) -> None:
        self._recipe, self._rules, self._journal, self._note = recipe, rules, journal, note
        self._requests = [OperatorRequest(row.decision, row.stage) for row in journal.asked]
        self._pausing: Pause | Resume | None = None

    @property
    def paused(self) -> bool:
        """Whether the run waits for an operator."""
        return isinstance(self._pausing, Pause)

    @property
    def will_pause(self) -> bool:
        """Whether a pause was asked for and hasn't begun."""
        return any(isinstance(request.decision, Pause) for request in self._requests)

    @property
    def pending(self) -> list[str]:
        """What was asked for and is still to be carried out, in words."""
        asked = [request.decision for request in self._requests]
        return [f"{one.words} (asked by {one.asked_by})" if one.asked_by else one.words for one in asked]

    def ask(self, decision: Decision, stage: int) -> None:
        """Put a decision on it that was asked for while a stage was on."""
        self._requests.append(OperatorRequest(decision, stage))
        self._journal.keep(self._requests)

    def ask_new_group(self, reason: str) -> None:
        """Ask that the group ends with a checkpoint so that another one can continue, unless that was asked already."""
        if not any(isinstance(asked.decision, NewGroup) for asked in self._requests):
            self.ask(NewGroup(reason=reason, time_s=time.time()), 0)

    def new_group(self) -> None:
        """Another group has started: no other one need be asked for, and a pause holds for it too."""
        self._requests = [asked for asked in self._requests if not isinstance(asked.decision, NewGroup)]
        if self._pausing:  # the checkpoint that came with it may not have been written in time
            self.ask(self._pausing, 0)

    def decisions(self, progress: Progress) -> tuple[Decision, ...]:
        """Return what all ranks do at this decision point, and take it off."""
        if progress.paused and self._pausing is None:
            self._pausing = Pause()  # of before this controller's time
        decisions = self._due(progress)
        for decision in decisions:
            if isinstance(decision, Pause | Resume):
                self._pausing = decision
        return decisions

    def _due(self, progress: Progress) -> tuple[Decision, ...]:
        """Return what is due again, of a run that went back; else what was asked for and what the rules say."""
        done, cursor = progress.num_replayed, progress.cursor
        repeated = self._journal.due(done, cursor)
        if any(isinstance(decision, NextStage | ExtendStage) for decision in repeated):
            return in_order(repeated)
        for late in (request.decision for request in self._requests if request.stage < progress.stage):
            if isinstance(late, NextStage | ExtendStage):
                self._note(f"{late.words}, asked by {late.asked_by}, came too late: its stage has ended")
        verdict = decide(self._recipe, self._rules, progress, () if repeated else self._requests)
        if not repeated:
            self._requests = list(verdict.waiting)
        now = time.time()
        new = [decision if decision.time_s else replace(decision, time_s=now) for decision in verdict.decisions]
        records = [DecisionRecord(cursor, progress.stage, decision) for decision in new if decision.replayed]
        self._journal.add(done + len(repeated), records)
        self._journal.keep(self._requests)
        return in_order([*repeated, *new])

"""The schedule as a run actually follows it: a pure function of the recipe's stages and the recorded decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.schedule.decisions import DecisionRecord, ExtendStage, NextStage, SetField
from pipeline.schedule.stages import StageSpan, TrainingStage


def crossed(interval: float, before: int, after: int) -> bool:
    """Is it time? True if a multiple of `interval` lies in (before, after]; never for interval 0."""
    return interval > 0 and math.floor(after / interval) > math.floor(before / interval)


class _Piece(NamedTuple):
    """From `cursor` on, the recipe's plan is gone through from `place` at `rate`."""

    cursor: int
    place: float
    rate: float


@dataclass(frozen=True)
class TrainingSchedule:
    """The stages, and what was decided about them. Looked up by cursor, never mutated."""

    stages: tuple[TrainingStage, ...]
    samples_per_epoch: int
    records: tuple[DecisionRecord, ...] = ()
    max_epochs: float = 0.0
    """Most epochs of a stage with what earlier ones passed on to it; 0: any number."""

    @cached_property
    def spans(self) -> tuple[StageSpan, ...]:
        """Each stage's span: of ended stages as they were, of the others as they are planned now."""
        spans = list[StageSpan]()
        passed_on = [0.0] * len(self.stages)
        start, values = 0, dict[str, Any]()
        for index, stage in enumerate(self.stages):
            stop = start + self._length(index, passed_on[index])
            if index in self._ends:
                cursor, end = self._ends[index]
                if end.pass_on:
                    self._share_out(stop - cursor, index, passed_on)
                stop = cursor
            spans.append(StageSpan(index, replace(stage, **values), start, stop))
            start, values = stop, self._ends[index][1].values if index in self._ends else {}
        return tuple(spans)

    @property
    def total_samples(self) -> int:
        """Cursor at which the run ends, as it is planned now."""
        return self.spans[-1].stop

    @cached_property
    def planned_samples(self) -> int:
        """Samples of the recipe's own plan, in which nothing was decided."""
        return TrainingSchedule(self.stages, self.samples_per_epoch, (), self.max_epochs).total_samples

    def position(self, cursor: int) -> float:
        """Return where in the recipe's own plan a cursor is, in samples: what the learning rate follows.

        A stage that was ended early or made longer changes how much is still to come, and the rest of the plan is gone
        through faster or slower from there on: without a jump, and to its end.
        """
        piece = next(piece for piece in reversed(self._pieces) if piece.cursor <= cursor)
        return piece.place + (cursor - piece.cursor) * piece.rate

    def setting(self, name: str, cursor: int, default: float) -> float:
        """Return the value of a live field for the step that starts at `cursor`."""
        for record in reversed(self.records):
            decision = record.decision
            if isinstance(decision, SetField) and decision.name == name and record.cursor <= cursor:
                return decision.value
        return default

    @cached_property
    def _pieces(self) -> list[_Piece]:
        pieces = [_Piece(0, 0.0, 1.0)]
        for number, record in enumerate(self.records, start=1):
            if not isinstance(record.decision, NextStage | ExtendStage):
                continue
            before = pieces[-1]
            place = before.place + (record.cursor - before.cursor) * before.rate
            left = replace(self, records=self.records[:number]).total_samples - record.cursor
            pieces.append(_Piece(record.cursor, place, (self.planned_samples - place) / left if left > 0 else 1.0))
        return pieces

    @cached_property
    def _ends(self) -> dict[int, tuple[int, NextStage]]:
        return {
            record.stage: (record.cursor, record.decision)
            for record in self.records
            if isinstance(record.decision, NextStage)
        }

    def _length(self, index: int, passed_on: float) -> int:
        """Samples of a stage: the whole global batches nearest to what it is to have, at least one."""
        stage = self.stages[index]
        samples = stage.epochs * self.samples_per_epoch + passed_on
        if self.max_epochs:
            samples = min(samples, max(self.max_epochs, stage.epochs) * self.samples_per_epoch)
        batches = max(1, round(samples / stage.batch_size))
        for record in self.records:
            if isinstance(record.decision, ExtendStage) and record.stage == index:
                batches += max(1, round(record.decision.epochs * self.samples_per_epoch / stage.batch_size))
        return batches * stage.batch_size

    def _share_out(self, samples: float, index: int, passed_on: list[float]) -> None:
        """Give what a stage left unused to the later ones, in proportion to their lengths and in whole batches."""
        epochs = sum(stage.epochs for stage in self.stages[index + 1 :])
        for later, stage in enumerate(self.stages[index + 1 :], start=index + 1):
            share = round(samples * stage.epochs / epochs / stage.batch_size) * stage.batch_size
            passed_on[later] += share
            samples, epochs = samples - share, epochs - stage.epochs

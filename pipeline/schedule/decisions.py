"""Decisions as data: what all ranks do at a decision point, why, when and on whose request, and their JSON form.

A decision that changes what is trained (`replayed`) is carried out again at the same cursor when a run is resumed from
before it. The others are history: a checkpoint, a pause or a stop is not for a run that was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from pipeline.schedule.stages import MAX_EPOCHS

PAUSE_POLL_S = 1.0
"""How often a paused run asks whether it continues, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What all ranks do at a decision point. To continue is no decision: there is none then."""

    kind: ClassVar[str] = ""
    replayed: ClassVar[bool] = False

    reason: str = ""
    """Why, in words."""
    asked_by: str = ""
    """Who asked for it; empty: nobody, a rule of the recipe."""
    time_s: float = 0.0
    """When it was asked for or decided (Unix time)."""

    @property
    def words(self) -> str:
        """The decision in a few words, without its reason."""
        return self.kind.replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class NextStage(Decision):
    """End the stage here; the next one begins."""

    kind: ClassVar[str] = "next_stage"
    replayed: ClassVar[bool] = True

    pass_on: bool = False
    """Whether the samples that the stage leaves unused go to the later stages; otherwise they are saved."""
    values: dict[str, float] = field(default_factory=dict)
    """Fields of the next stage that are other than the recipe's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtendStage(Decision):
    """Make the stage longer."""

    kind: ClassVar[str] = "extend"
    replayed: ClassVar[bool] = True

    epochs: float
    """Passes over the training data that the stage gets in addition."""

    def __post_init__(self) -> None:
        if not 0 < self.epochs <= MAX_EPOCHS:
            raise ValueError(f"extend {self.epochs:g}: give a number of epochs above 0 and at most {MAX_EPOCHS:,}")

    @property
    def words(self) -> str:
        """The decision in a few words."""
        return f"extend by {self.epochs:g} epochs"


LIVE_FIELDS: dict[str, tuple[float, bool]] = {"lr_scale": (0.0, False), "patience": (1, True), "log_every": (1, True)}
"""What may change while a run trains: name -> (lowest value, whether it is a whole number)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetField(Decision):
    """Give one of `LIVE_FIELDS` another value from here on."""

    kind: ClassVar[str] = "set"
    replayed: ClassVar[bool] = True

    name: str
    """Name of the field: `lr_scale` (a factor of the learning rate), `patience` (evaluations), `log_every` (steps)."""
    value: float
    """Its new value."""

    def __post_init__(self) -> None:
        if self.name not in LIVE_FIELDS:
            raise ValueError(f"set {self.name}: only {', '.join(LIVE_FIELDS)} may change while a run trains")
        low, whole = LIVE_FIELDS[self.name]
        if not low <= self.value < math.inf or (whole and self.value != int(self.value)):
            raise ValueError(
                f"set {self.name} {self.value:g}: give a {'whole number' if whole else 'number'} from {low:g} on"
            )

    @property
    def words(self) -> str:
        """The decision in a few words."""
        return f"set {self.name} to {self.value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint(Decision):
    """Save, and continue."""

    kind: ClassVar[str] = "checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause(Decision):
    """Save, and wait with all workers kept, until `Resume` or `Stop`."""

    kind: ClassVar[str] = "pause"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume(Decision):
    """End a pause."""

    kind: ClassVar[str] = "resume"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewGroup(Decision):
    """Save and end, so that a group of another size can continue."""

    kind: ClassVar[str] = "new_group"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop(Decision):
    """Save and end the run; submitting it again resumes it."""

    kind: ClassVar[str] = "stop"


# In the order in which several decisions of one decision point are carried out.
_TYPES = (SetField, ExtendStage, NextStage, Checkpoint, Resume, Pause, NewGroup, Stop)
_BY_KIND: dict[str, type[Decision]] = {cls.kind: cls for cls in _TYPES}


def in_order(decisions: Iterable[Decision]) -> tuple[Decision, ...]:
    """Sort decisions of one decision point into the order in which they are carried out."""
    return tuple(sorted(decisions, key=lambda decision: _TYPES.index(type(decision))))


def leaving(decisions: Iterable[Decision]) -> Decision | None:
    """Return the decision with which a stage's loop is left: the last of those that do that, or None."""
    leaves = [one for one in decisions if isinstance(one, ExtendStage | NextStage | NewGroup | Stop)]
    return leaves[-1] if leaves else None


class DecisionRecord(NamedTuple):
    """A decision that was carried out."""

    cursor: int
    """Samples consumed when it was carried out: steps from this cursor on are under it."""
    stage: int
    """Index of the stage that was on."""
    decision: Decision

    def entry(self) -> dict[str, Any]:
        """Return it as JSON values, without fields that say nothing."""
        values = {name: value for name, value in asdict(self.decision).items() if value not in ("", 0.0, {}, False)}
        return {"cursor": self.cursor, "stage": self.stage, "decision": self.decision.kind, **values}


def record_of(entry: dict[str, Any]) -> DecisionRecord:
    """Return the record that `DecisionRecord.entry` wrote."""
    cls = _BY_KIND[entry["decision"]]
    known = {item.name for item in fields(cls)}
    values = {name: value for name, value in entry.items() if name in known}
    if cls is SetField:
        values.setdefault("value", 0.0)
    return DecisionRecord(entry["cursor"], entry["stage"], cls(**values))


def records_of(entries: Iterable[dict[str, Any]]) -> tuple[DecisionRecord, ...]:
    """Return a training state's decisions as records."""
    return tuple(record_of(entry) for entry in entries)


def paused(records: Iterable[DecisionRecord]) -> bool:
    """Say whether a run with these decisions waits for an operator."""
    last = [record.decision for record in records if isinstance(record.decision, Pause | Resume | Stop)]
    return bool(last) and isinstance(last[-1], Pause)

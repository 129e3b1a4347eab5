"""`RunStatus`: what a controller knows about its run, frozen. `jobs.status --json` prints its `to_json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan, TrainingStage

Phase = Literal["queued", "starting", "training", "paused", "failed", "finished", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """Which run it is."""

    name: str = "run"
    model: str = ""
    seed: int = 0
    storage: str = ""
    """URI of the run's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointStatus:
    """The newest checkpoint."""

    uri: str
    cursor: int
    saved_s: float | None
    """When it was made (Unix time); None: not known."""
    age_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuietRank:
    """The rank that is furthest behind, and of those was not heard of for the longest time."""

    rank: int
    node: str
    age_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingRank:
    """The rank that waits most for data."""

    rank: int
    node: str
    wait_share: float
    """Share of its time (0 to 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupStatus:
    """The workers that are heard of."""

    count: int = 0
    nodes: int = 0
    quietest: QuietRank | None = None
    waits_most: WaitingRank | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """What is known of a run. Pickles as its JSON values: a process with another version of this code may read it."""

    run: RunIdentity
    progress: Progress | None = None
    """What rank 0 told at the newest decision point; None: there was none yet."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest value of each metric."""
    left_s: tuple[float, ...] = ()
    """Seconds that each stage has still to go, as estimated; empty: not known."""
    checkpoint: CheckpointStatus | None = None
    checkpoint_waits: int = 0
    """Times that a checkpoint could not be written to storage."""
    workers: GroupStatus | None = None
    """None: the controller is of another version, and no more than name and phase is known."""
    age_s: float = 0.0
    """Seconds since rank 0 was heard of."""
    notes: tuple[str, ...] = ()
    """The last lines for the user, of `noted` in all."""
    noted: int = 0
    phase: Phase
    error: str = ""
    """Why the run failed, or an empty text."""
    recoveries: int = 0
    """Worker groups restarted after a failure."""
    pending: tuple[str, ...] = ()
    """What was asked for and is still to be carried out, in words."""
    started_s: float = 0.0
    """When the worker group started (Unix time)."""
    queued_s: float = 0.0
    """When the run came to the cluster's queue (Unix time)."""
    needs: dict[str, float] = field(default_factory=dict)
    """What its first workers reserve at least, by Ray's names."""
    waits: str = ""
    """What a run without workers waits for, or an empty text."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = asdict(self)
        if self.workers is not None:
            values["workers"] = {name: value for name, value in values["workers"].items() if value is not None}
        return values.pop("run") | values

    def __reduce__(self) -> tuple[object, ...]:
        return read_status, (self.to_json(),)


def read_status(values: Mapping[str, Any]) -> RunStatus:
    """Return the status in JSON values; of another version's only name and phase, where it lacks something."""
    identity = RunIdentity(**_known(RunIdentity, values))
    try:
        own = _known(RunStatus, values) | {"run": identity, "workers": _group(values["workers"])}
        own |= {name: tuple(values[name]) for name in ("left_s", "notes", "pending")}
        own["progress"] = _progress(values["progress"]) if values["progress"] else None
        saved = values["checkpoint"]
        own["checkpoint"] = CheckpointStatus(**_known(CheckpointStatus, saved)) if saved else None
        return RunStatus(**own)
    except (KeyError, TypeError):
        return RunStatus(run=identity, phase=values["phase"])


def _group(values: Mapping[str, Any]) -> GroupStatus:
    quiet, waits = values.get("quietest"), values.get("waits_most")
    return GroupStatus(
        count=values["count"],
        nodes=values["nodes"],
        quietest=QuietRank(**_known(QuietRank, quiet)) if quiet else None,
        waits_most=WaitingRank(**_known(WaitingRank, waits)) if waits else None,
    )


def _progress(values: Mapping[str, Any]) -> Progress:
    spans = tuple(
        StageSpan(span["index"], TrainingStage(**_known(TrainingStage, span["stage"])), span["start"], span["stop"])
        for span in values["spans"]
    )
    lists = {name: tuple(values[name]) for name in ("stage_results", "evaluations", "decisions")}
    return Progress(**_known(Progress, values) | lists | {"spans": spans})


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are fields of a class here: another version may have more."""
    names = {item.name for item in fields(cls)}
    return {name: value for name, value in values.items() if name in names}

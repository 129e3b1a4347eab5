"""The controller's replies to its workers: all that a call needs in one value."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.schedule.decisions import Decision


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinReply:
    """All that a rank needs from the controller before it trains."""

    error: str
    """The error that ended the run: then the rank must not train. Empty: none."""
    lease_token: str
    """By what the run's lease is known; empty: it has none."""
    group: int
    """Number of this worker group within the submission, from 1."""
    tracking_uri: str
    """The address of the MLflow server that an operator named last; empty: the config's holds."""
    out_of_memory: tuple[tuple[int, int], ...]
    """Passes that didn't fit into memory in earlier groups: (stage, samples) each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionReply:
    """What rank 0 hears at a decision point."""

    decisions: tuple[Decision, ...]
    """What all ranks do next, in order; nothing: continue."""
    tracking_uri: str
    """The address of the MLflow server that an operator named last; empty: the config's holds."""
    loads: tuple[tuple[str, dict[str, float]], ...] = ()
    """The newest load of each node that told one since the last decision point: node and values."""
    taken_over: bool
    """Whether another submission trains this run now: then nothing of it may be written any more."""

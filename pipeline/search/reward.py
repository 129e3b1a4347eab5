"""The reward of a search, and the Pareto front of its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEP_EXPONENT = -0.07
PARAMETER_EXPONENT = -0.05


def reward(accuracy: float, step_ratio: float, parameter_ratio: float) -> float:
    """Return A x S^w x P^v with w = -0.07 and v = -0.05 (arXiv 2104.00298, section 3.1).

    Step time S and parameters P are relative to the base's, so the base's reward is its accuracy.
    """
    return accuracy * step_ratio**STEP_EXPONENT * parameter_ratio**PARAMETER_EXPONENT


@dataclass(frozen=True, slots=True)
class Candidate:
    """What counts of a trained candidate."""

    number: int
    accuracy: float
    """More is better."""
    step_ratio: float
    """Less is better."""
    parameter_ratio: float
    """Less is better."""

    def beats(self, other: Candidate) -> bool:
        """Say whether it is better in something and worse in nothing."""
        mine, its = ((one.accuracy, -one.step_ratio, -one.parameter_ratio) for one in (self, other))
        return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that no other one beats, fastest first."""
    front = [one for one in candidates if not any(other.beats(one) for other in candidates)]
    return sorted(front, key=lambda one: one.step_ratio)

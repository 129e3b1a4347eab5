"""Schedulers that end trials early, at the ends of stages: Ray Tune's ASHA, and synchronous successive halving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from infra.cluster.ray_private import with_rungs


class StageAsha(ASHAScheduler):
    """ASHA over stages. Trials of an earlier submission count as if they were of this one.

    It asks a run to stop, and leaves the trial to Tune until that is done: Tune gives a trial that it ends itself
    five seconds at the study's end, which is too short for a checkpoint on a busy machine.
    """

    def __init__(
        self,
        *,
        num_stages: int,
        eta: int,
        highest: bool,
        end: Callable[[str], None],
        known: Sequence[Sequence[float]] = (),
    ) -> None:
        super().__init__(
            time_attr="stage",
            metric="value",
            mode="max" if highest else "min",
            max_t=num_stages,
            grace_period=1,
            reduction_factor=eta,
            stop_last_trials=False,
        )
        # Every stage's end but the last one's is a rung; ASHA's own lie at powers of eta, as for thousands of steps.
        bracket = with_rungs(self, range(1, num_stages))
        self._end = end
        self.ended: set[str] = set()
        """Tune's ids of the trials that it has ended: those are done, unlike trials that were interrupted."""
        for number, values in enumerate(known):
            trial = SimpleNamespace(trial_id=f"earlier-{number}")
            for stage, value in enumerate(values, start=1):
                bracket.on_result(trial, stage, value if highest else -value)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """End the run of what is not among the best 1/eta so far."""
        if trial.trial_id not in self.ended:
            action = super().on_trial_result(tune_controller, trial, result)
            if action == TrialScheduler.STOP:
                self.ended.add(trial.trial_id)
                self._end(trial.config["name"])
        return str(TrialScheduler.CONTINUE)


def survivors(values: Mapping[int, float], eta: int, *, highest: bool) -> set[int]:
    """Return the numbers of the best 1/eta trials, rounded up; of equal ones those that came first."""
    ranked = sorted(values, key=lambda number: (-values[number] if highest else values[number], number))
    return set(ranked[: math.ceil(len(ranked) / eta)])

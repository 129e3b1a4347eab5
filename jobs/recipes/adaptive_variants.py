"""What may move a run through its stages besides their lengths: plateaus, and regularization that follows the gap."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor
from typing import Any

from jobs.recipes.stage_variants import Stages
from pipeline.config import TrainConfig
from pipeline.schedule.adaptive import regularization_ranges
from pipeline.schedule.stages import AdaptiveConfig

PASSED_ON, SAVED, CLOSED_LOOP = "plateau, epochs passed on", "plateau, epochs saved", "closed loop"


def without_rules(base: TrainConfig) -> TrainConfig:
    """Return the recipe with its stages as planned. Its patience says nothing then: a run is the same one, and used
    again, whatever it is."""
    off = replace(base.adaptive, plateau=False, closed_loop=False, patience=AdaptiveConfig().patience)
    return replace(base, adaptive=off)


def adaptive_variants(base: TrainConfig) -> tuple[dict[str, TrainConfig], dict[str, str]]:
    """Return the recipe with each rule alone that can change its run, and a note on a rule, by their names."""
    off, patience = without_rules(base).adaptive, base.adaptive.patience
    on = replace(off, plateau=True, patience=patience, **_watched(base))
    rules, notes = {}, {}
    if _may_end_early(base, base.stages):
        rules[SAVED] = replace(on, unused="saved")
        notes[SAVED] = notes[PASSED_ON] = f"Evaluations without improvement that make a plateau: {patience}."
    else:
        notes[SAVED] = notes[PASSED_ON] = (
            f"Plateaus are left out: no stage is long enough to end early. It would need {patience + 1} evaluations "
            f"before its end (--adaptive.patience {patience}) and more than {off.min_epochs:g} epochs "
            "(--adaptive.min-epochs): train longer (--epochs), or lower one of these or --trainer.eval-every-epochs."
        )
    if _may_end_early(base, base.stages[:-1]):
        rules[PASSED_ON] = replace(on, unused="later")
    elif SAVED in rules:
        notes[PASSED_ON] = f"{PASSED_ON} is left out: only the last stage is long enough, and it keeps its length then."
    if regularization_ranges(base.stages):
        rules[CLOSED_LOOP] = replace(off, closed_loop=True)
    else:
        notes[CLOSED_LOOP] = "The closed loop is left out: no regularization of this recipe has a range to vary over."
    variants = {name: replace(base, adaptive=rules[name]) for name in (PASSED_ON, SAVED, CLOSED_LOOP) if name in rules}
    return variants, notes


def _watched(base: TrainConfig) -> dict[str, Any]:
    """Return the metric whose plateau ends a stage: the recipe's best one where the task doesn't measure the default
    one; nothing: as the recipe has it."""
    default, best = AdaptiveConfig().metric, base.checkpoint
    if base.adaptive.metric != default or default.removeprefix("val/") in base.task.metric_names(()):
        return {}
    return {"metric": best.best_metric, "better": best.best_is}


def _may_end_early(base: TrainConfig, stages: Stages) -> bool:
    """Say whether one of the first stages is long enough to end early: for `adaptive.min_epochs`, and for a best
    evaluation and `adaptive.patience` others before its end."""
    every, stop = base.trainer.eval_every_epochs, 0.0
    for stage in stages:
        start, stop = stop, stop + stage.epochs
        evaluations = ceil(stop / every - 1e-6) - floor(start / every + 1e-6) - 1
        if evaluations > base.adaptive.patience and stage.epochs > base.adaptive.min_epochs:
            return True
    return False

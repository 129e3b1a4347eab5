"""The comparison of a stage's endings: all weights, or only the classifier and the norms."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from jobs.recipes.stage_variants import Stages, last_of
from pipeline.compare.config import Comparison
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage


def norms(base: TrainConfig) -> Comparison:
    """Does an ending that trains only the classifier and the norms on evaluation's view beat as long a plain one?"""
    if base.adaptive.closed_loop or base.adaptive.plateau:  # endings are to be equally long, and regularized as given
        base = replace(base, adaptive=replace(base.adaptive, closed_loop=False, plateau=False))
    *before, whole = base.stages
    last = replace(last_of(base.stages), epochs=whole.epochs / 2)
    larger = _larger(base.stages)
    plain = TrainingStage(image_size=last.image_size, epochs=last.epochs, batch_size=last.batch_size)
    fixres = replace(plain, fixres=True, stochastic_depth=0.0, lr_factor=last.lr_factor, num_workers=last.num_workers)
    endings = {
        "plain": last,
        "plain, unregularized": replace(plain, lr_factor=last.lr_factor, num_workers=last.num_workers),
        "fixres": fixres,
        "plain, larger": replace(last, image_size=larger),
        "fixres, larger": replace(fixres, image_size=larger),
    }
    trainer = replace(base.trainer, eval_scale=1.0)
    return Comparison(
        name="norms",
        question=f"The second half of the last stage, {last.epochs:g} epochs: as the recipe has it, the same without "
        "RandAugment, Mixup and dropout, or FixRes's ending, which has none of these either and trains only the "
        f"classifier and the norms on the evaluation's crop; at {last.image_size} and at {larger} px.",
        variants={
            name: replace(base, stages=(*before, last, ending), trainer=trainer) for name, ending in endings.items()
        },
        baseline="plain",
        notes=(
            "Each run is evaluated at its last image size. Plateaus and the closed loop are off. What re-estimated "
            "statistics bring at other sizes: `python -m jobs.evaluate RUN --image-size N --reestimate-bn 2000`.",
        ),
    )


def _larger(stages: Stages) -> int:
    """Return the size nearest to 1.25 times the last one's, in the steps that the stages' sizes have."""
    last, step = stages[-1].image_size, gcd(*(stage.image_size for stage in stages))
    step = min(step, 16) if step % 16 == 0 else step
    return max(last + step, round(1.25 * last / step) * step)

"""What a schedule looks like: the curves that are drawn of it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.schedule.stages import TrainingStage

CURVES = {
    "image size": "image_size",
    "RandAugment": "randaugment_magnitude",
    "Mixup": "mixup_alpha",
    "CutMix": "cutmix_alpha",
    "dropout": "dropout",
}
"""Names of the curves, and a stage's field of each."""


def curves(stages: Sequence[TrainingStage]) -> dict[str, list[float]]:
    """Return the value of each stage by the curve's name; without what no stage uses."""
    found = {name: [float(getattr(stage, field)) for stage in stages] for name, field in CURVES.items()}
    return {name: values for name, values in found.items() if any(values)}


def edges(stages: Sequence[TrainingStage]) -> list[float]:
    """Return where stages begin, in epochs, and after them where the last one ends."""
    at = [0.0]
    for stage in stages:
        at.append(at[-1] + stage.epochs)
    return at

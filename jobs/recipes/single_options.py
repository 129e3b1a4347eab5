"""The comparison of the options of a progressive run, each switched on alone."""

from __future__ import annotations

from dataclasses import replace

from jobs.recipes.adaptive_variants import CLOSED_LOOP, PASSED_ON, adaptive_variants, without_rules
from jobs.recipes.stage_variants import (
    RANDOM_SIZE_SHARE,
    check_grows,
    one_size,
    smaller_crops,
    with_earlier_sizes,
)
from pipeline.compare.config import Comparison
from pipeline.config import TrainConfig
from pipeline.schedule.stages import AUTO

PLAIN = "none"


def single_options(base: TrainConfig) -> Comparison:
    """Each option of a progressive run alone: what the network is shown, the batch, and what moves the stages."""
    check_grows(base)
    last, area = base.stages[-1], base.data.crop_area
    plain = tuple(replace(one_size(stage), crop_area=None) for stage in base.stages)
    off = replace(without_rules(base), stages=plain, data=replace(base.data, flip_order="random"))
    spectra = tuple(
        replace(one, low_frequency_of=last.image_size if one.image_size < last.image_size else 0) for one in plain
    )
    variants, notes = {PLAIN: off}, []
    crops = tuple(one_size(stage) for stage in base.stages)
    if crops == plain and area[0] < 1:  # the recipe has none of its own
        crops = tuple(smaller_crops(stage, last.image_size, area) for stage in plain)
    if crops != plain:
        variants["smaller crops"] = replace(off, stages=crops)
    else:
        notes.append("Smaller crops are left out: this recipe shows whole images.")
    variants["low frequencies"] = replace(off, stages=spectra)
    earlier = tuple(with_earlier_sizes(plain, index) for index in range(len(plain)))
    variants["random sizes"] = replace(off, stages=earlier)
    if base.data.flip:
        variants["alternating flips"] = replace(off, data=replace(off.data, flip_order="alternating"))
    else:
        notes.append("Alternating flips are left out: this recipe doesn't flip.")
    if {stage.batch_size for stage in plain} == {last.batch_size}:
        grown = tuple(replace(one, batch_size=AUTO) if one.image_size < last.image_size else one for one in plain)
        variants["larger early batches"] = replace(off, stages=grown)
    else:
        notes.append("Larger early batches are left out: this recipe's batches differ already.")
    adaptive, told = adaptive_variants(replace(off, adaptive=base.adaptive))
    for name in (PASSED_ON, CLOSED_LOOP):
        if name in adaptive:
            variants[name] = adaptive[name]
        if name in told:
            notes.append(told[name])
    about = {
        PLAIN: "the recipe with the data's crop area in all stages, and without the others",
        "smaller crops": "crops of early stages from the scale at which the last stage shows objects",
        "low frequencies": "crops of the last size, of whose spectra early stages see the centre",
        "random sizes": f"{RANDOM_SIZE_SHARE:.0%} of a stage's steps at sizes of the stages before it",
        "alternating flips": "an image is mirrored every second time it is used",
        "larger early batches": "automatic batches: a step of every stage has about as many pixels, within limits",
        PASSED_ON: "a stage ends on a plateau, and the later ones get its epochs",
        CLOSED_LOOP: "regularization follows the gap between the losses, in the range of the recipe's",
    }
    return Comparison(
        name="single-options",
        question="Options of a progressive run, each alone: the same model and epochs.",
        variants=variants,
        baseline=PLAIN,
        about={name: about[name] for name in variants},
        notes=tuple(notes),
    )

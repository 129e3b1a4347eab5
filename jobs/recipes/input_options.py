"""The comparison of what a progressive run shows the network: crops of another scale, spectra, flips and sizes."""

from __future__ import annotations

from dataclasses import replace

from jobs.recipes.stage_variants import RANDOM_SIZE_SHARE, check_grows, one_size, smaller_crops, with_earlier_sizes
from pipeline.compare.config import Comparison
from pipeline.config import TrainConfig

INPUTS_PLAIN = "resized"


def input_options(base: TrainConfig) -> Comparison:
    """What the network is shown in a progressive run: crops of another scale, spectra, flips and sizes."""
    check_grows(base)
    plain = tuple(replace(one_size(stage), crop_area=None) for stage in base.stages)
    last = plain[-1].image_size
    crops = tuple(one_size(stage) for stage in base.stages)
    if crops == plain:  # the recipe has none of its own
        crops = tuple(smaller_crops(stage, last, base.data.crop_area) for stage in plain)
    spectra = tuple(replace(one, low_frequency_of=last if one.image_size < last else 0) for one in plain)
    mixed = tuple(with_earlier_sizes(plain, index) for index in range(len(plain)))
    off = replace(base, stages=plain, data=replace(base.data, flip_order="random"))
    variants = {
        INPUTS_PLAIN: off,
        "smaller crops": replace(off, stages=crops),
        "low frequencies": replace(off, stages=spectra),
        "random sizes": replace(off, stages=mixed),
    }
    notes: tuple[str, ...] = ()
    if base.data.flip:
        variants["alternating flips"] = replace(off, data=replace(off.data, flip_order="alternating"))
    else:
        notes = ("Alternating flips are left out: this recipe doesn't flip.",)
    return Comparison(
        name="input-options",
        question="Options of what a progressive run shows the network, each alone: the same model and epochs.",
        variants=variants,
        baseline=INPUTS_PLAIN,
        about={
            INPUTS_PLAIN: "the recipe with the data's crop area in all stages",
            "smaller crops": "crops of early stages from the scale at which the last stage shows objects",
            "low frequencies": "crops of the last size, of whose spectra early stages see the centre",
            "random sizes": f"{RANDOM_SIZE_SHARE:.0%} of a stage's steps at sizes of the stages before it",
            "alternating flips": "an image is mirrored every second time it is used",
        },
        notes=notes,
    )

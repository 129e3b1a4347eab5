"""The predefined comparisons: each a function from a recipe's config to named variants of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

from jobs.recipes.adaptive_variants import adaptive_variants, without_rules
from jobs.recipes.endings import norms
from jobs.recipes.single_options import single_options
from jobs.recipes.stage_variants import (
    as_costly,
    check_grows,
    fixed_regularization,
    fixed_stages,
    random_sizes,
    three_sizes,
)
from model.config import UNETS, architecture_of
from model.tables import Block
from pipeline.compare.config import CompareError, Comparison, Grid
from pipeline.config import TrainConfig
from pipeline.schedule.adaptive import regularization_ranges

WEAKEST = "strength 0"
FIXED, PROGRESSIVE, LONGER = "fixed", "progressive", "progressive longer"
DATAS_CROPS = "progressive, the data's crops"


def progressive_vs_fixed(base: TrainConfig) -> Comparison:
    """Does growing the image size save time, and does growing the regularization with it save accuracy?"""
    check_grows(base)
    notes = ["Learning-rate factors apply only where sizes grow."]
    if base.adaptive.closed_loop:  # it would choose the regularization that the variants differ in
        base = replace(base, adaptive=replace(base.adaptive, closed_loop=False))
        notes.append("The recipe's closed loop is off: regularization is the stages'.")
    about = {
        FIXED: "all stages at the last stage's size and regularization",
        PROGRESSIVE: "the recipe",
        LONGER: "the recipe with so many more epochs that it costs as many images x pixels as fixed",
        "progressive sizes only": "the recipe's sizes, the last regularization in all stages",
        "random sizes": "its sizes in random order, an epoch each, the last regularization",
        DATAS_CROPS: "the recipe with the data's crop area in all stages",
    }
    fixed = fixed_stages(base.stages)
    candidates = {
        FIXED: replace(base, stages=fixed),
        PROGRESSIVE: base,
        LONGER: replace(base, stages=as_costly(base.stages, fixed)),
        "progressive sizes only": replace(base, stages=fixed_regularization(base.stages)),
        "random sizes": replace(base, stages=random_sizes(base.stages)),
    }
    if any(stage.crop_area not in (None, base.data.crop_area) for stage in base.stages):
        candidates[DATAS_CROPS] = replace(base, stages=tuple(replace(one, crop_area=None) for one in base.stages))
    return distinct(
        Comparison(
            name="progressive-vs-fixed",
            question="Progressive learning against training at the last size all the time: the same model, for as many "
            "epochs or at the same cost.",
            variants=candidates,
            baseline=FIXED,
            about={name: about[name] for name in candidates},
            notes=tuple(notes),
        )
    )


def distinct(comparison: Comparison) -> Comparison:
    """Return a comparison without variants that are the same run as an earlier one; it says so of each."""
    kept: dict[str, TrainConfig] = {}
    left_out: dict[str, str] = {}
    for name, config in comparison.variants.items():
        same = next((other for other, seen in kept.items() if seen == config), None)
        if same is None:
            kept[name] = config
        else:
            left_out[name] = f"left out: for this recipe it is the same run as {same}"
    return replace(comparison, variants=kept, about={**comparison.about, **left_out})


def size_vs_regularization(base: TrainConfig) -> Comparison:
    """Which strength of RandAugment suits which image size: the table that progressive learning rests on."""
    check_grows(base)
    strongest = base.stages[-1].randaugment_magnitude
    if strongest <= 0:
        raise CompareError(
            f"size-vs-regularization: the last stage of {base.name} has no RandAugment; give it a magnitude, such as "
            f"--stages.{len(base.stages) - 1}.randaugment-magnitude 9"
        )
    sizes, magnitudes = three_sizes(base.stages), [strongest * step / 3 for step in (1, 2, 3)]
    variants, cells = {}, {}
    for magnitude in magnitudes:
        for size in sizes:
            stages = tuple(
                replace(stage, image_size=size, randaugment_magnitude=magnitude) for stage in fixed_stages(base.stages)
            )
            variant = f"{size} px, RandAugment {magnitude:g}"
            variants[variant] = replace(base, stages=stages)
            cells[f"{magnitude:g}", str(size)] = variant
    return Comparison(
        name="size-vs-regularization",
        question="Which RandAugment magnitude is best at which image size? Small images want less, if the task is as "
        "the paper's.",
        variants=variants,
        baseline=cells[f"{strongest:g}", str(sizes[-1])],
        grid=Grid(rows="RandAugment", columns="image size, px", cells=cells),
        notes=(
            "All stages of a run are alike; Mixup, CutMix and dropout are the recipe's last. Each run is evaluated "
            "at its own size, so a column compares, a row doesn't.",
        ),
    )


def fused(base: TrainConfig) -> Comparison:
    """Where Fused-MBConv is faster than MBConv, and what it costs: the paper's ablation on the recipe's own rows."""
    _check_from_nothing(base, "fused")
    architecture = architecture_of(base.model)
    if architecture is None:
        raise CompareError(f"fused: model.name is {base.model.name}, which has no rows; take an EfficientNet")
    rows = architecture.blocks
    counts = sorted({0, *(max(1, round(len(rows) * share)) for share in (3 / 7, 5 / 7, 1))})
    variants = {
        f"fused 1-{count}" if count else "no fused": replace(
            base, model=replace(base.model, rows=with_fused(rows, count), fused_rows=())
        )
        for count in counts
    }
    return Comparison(
        name="fused",
        question="Fused-MBConv in the first rows of the architecture, counted from 1, MBConv with "
        "squeeze-and-excitation in the others.",
        variants=variants,
        baseline="no fused",
        notes=("The stages are the recipe's. Kernels, expansions, channels and layers are the rows' own.",),
    )


def with_fused(rows: tuple[Block, ...], count: int) -> tuple[Block, ...]:
    """Return the rows with Fused-MBConv in the first `count`, and MBConv in the others."""
    return tuple(
        replace(row, operator="Fused-MBConv", se=0.0) if index < count else replace(row, operator="MBConv", se=0.25)
        for index, row in enumerate(rows)
    )


def swin_vs_efficientnet(base: TrainConfig) -> Comparison:
    """The two families at equal multiply-adds: the Swin that comes nearest to the recipe's EfficientNet."""
    from pipeline.compare.matching import nearest_swin

    if architecture_of(base.model) is None or base.model.name in UNETS:
        raise CompareError(f"swin-vs-efficientnet: model.name is {base.model.name}; take an EfficientNet's recipe")
    _check_from_nothing(base, "swin-vs-efficientnet")
    last = base.stages[-1].image_size
    found = nearest_swin(base.model, last)
    stages = tuple(replace(stage, image_size=found.whole(stage.image_size)) for stage in base.stages)
    base = replace(base, stages=stages)
    # Swin doesn't learn by EfficientNet's settings. These are its paper's (arXiv 2103.14030, A2.1), at 1,024 images a
    # step; an adaptive optimizer's rate goes with the square root of that number (arXiv 2205.10287).
    lr = 1e-3 * sqrt(base.stages[-1].batch_size / 1024)
    optimizer = replace(
        base.optimizer, optimizer="adamw", lr=lr, lr_per_batch=0, weight_decay=0.05, schedule="cosine", eps=1e-8
    )
    model = replace(base.model, name=found.name, rows=(), fused_rows=(), same_padding=False)
    swin = replace(base, model=model, optimizer=optimizer)
    return distinct(
        Comparison(
            name="swin-vs-efficientnet",
            question=f"EfficientNet and Swin Transformer at matched cost: {found.name} is the Swin whose multiply-adds "
            f"at {stages[-1].image_size} px are nearest ({found.ratio:.2f} times the EfficientNet's).",
            variants={
                "efficientnet": base,
                "swin": swin,
                "efficientnet fixed": replace(base, stages=fixed_stages(stages)),
                "swin fixed": replace(swin, stages=fixed_stages(stages)),
            },
            baseline="efficientnet",
            notes=(
                f"Image sizes are the recipe's, rounded to Swin's multiples of {found.stride}. Swin trains by AdamW at "
                f"{lr:.2g}, its paper's rate for this batch.",
            ),
        )
    )


def _check_from_nothing(base: TrainConfig, comparison: str) -> None:
    """Refuse weights of the recipe's model, which none of the others could begin with."""
    if base.model.init_from or base.model.frozen:
        name, value = ("frozen", "True") if base.model.frozen else ("init_from", base.model.init_from)
        raise CompareError(
            f"{comparison}: model.{name} of {base.name} is {value}, and its models begin with random weights; take a "
            "recipe that begins so too"
        )


def schedulers(base: TrainConfig) -> Comparison:
    """What moves a run through its stages: the recipe's lengths, plateaus, or regularization that follows the gap; and
    whether its regularization is worth having at all."""
    check_grows(base)
    adaptive, told = adaptive_variants(base)
    notes = [*dict.fromkeys(told.values())]
    linear = without_rules(base)
    variants = {"linear": linear, **adaptive}
    if ranges := regularization_ranges(base.stages):
        weakest: dict[str, Any] = {name: low for name, (low, _) in ranges.items()}
        variants[WEAKEST] = replace(linear, stages=tuple(replace(stage, **weakest) for stage in base.stages))
        notes.append(f"{WEAKEST}: the first stage's regularization in all of them, which is what a ramp must beat.")
    if len(variants) == 1:
        raise CompareError(f"schedulers: nothing in {base.name} can differ. {' '.join(notes)}")
    return Comparison(
        name="schedulers",
        question="A linear ramp, stages that end on a plateau, and regularization in a closed loop.",
        variants=variants,
        baseline="linear",
        notes=tuple(notes),
    )


def initialization(base: TrainConfig) -> Comparison:
    """The authors' random weights for depthwise convolutions against torchvision's, which are far smaller."""
    _check_from_nothing(base, "initialization")
    architecture = architecture_of(base.model)
    if architecture is None or all(row.operator == "Fused-MBConv" for row in architecture.blocks):
        raise CompareError(f"initialization: {base.model.name} has no depthwise convolutions; take an EfficientNet")
    return Comparison(
        name="initialization",
        question="Do the random weights of depthwise convolutions matter? The two differ by the square root of the "
        "layer's channels.",
        variants={init: replace(base, model=replace(base.model, init=init)) for init in ("torchvision", "google")},
        baseline="torchvision",
        about={"torchvision": "fan-out of all groups together", "google": "fan-out of one group, as the authors' code"},
    )


COMPARISONS: dict[str, Callable[[TrainConfig], Comparison]] = {
    "progressive-vs-fixed": progressive_vs_fixed,
    "size-vs-regularization": size_vs_regularization,
    "fused": fused,
    "swin-vs-efficientnet": swin_vs_efficientnet,
    "schedulers": schedulers,
    "initialization": initialization,
    "single-options": single_options,
    "norms": norms,
}

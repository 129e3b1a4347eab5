from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.common.cli import parse_recipe
from jobs.common.schedule_flags import RampFlags, ScheduleFlags, scheduled
from jobs.recipes.catalog import RECIPES
from jobs.recipes.fonts import fonts_progressive
from jobs.recipes.imagenet import efficientnetv2_s_paper
from jobs.recipes.solar_cells import demo_scratch
from pipeline.config import TrainConfig
from pipeline.schedule.stages import RAMPED, ramp

RAMP = "--ramp.stages 4 --ramp.image-size 128 300 --ramp.randaugment 5 15 --ramp.mixup 0 0.2 --ramp.dropout 0.1 0.3"


def parse(line: str) -> TrainConfig:
    return parse_recipe(line.split(), prog="train")[0]


def test_a_ramp_makes_the_stages_that_the_papers_algorithm_makes() -> None:
    made = parse(f"demo_scratch {RAMP} --epochs 40")
    assert made.stages == ramp(
        epochs=40,
        batch_size=48,
        image_size=(128, 300),
        randaugment_magnitude=(5, 15),
        mixup_alpha=(0, 0.2),
        dropout=(0.1, 0.3),
    )
    assert made.optimizer.warmup_epochs == pytest.approx(2 * 40 / 24)
    assert replace(made, stages=demo_scratch().stages, optimizer=demo_scratch().optimizer) == demo_scratch()


def test_single_stages_are_set_after_the_ramp_wherever_they_stand() -> None:
    for line in (f"demo_scratch {RAMP} --stages.2.image-size 200", f"demo_scratch --stages.2.image-size 200 {RAMP}"):
        assert [stage.image_size for stage in parse(line).stages] == [128, 185, 200, 300]
    assert len(parse("demo_scratch --ramp.stages 6 --stages.5.epochs 9").stages) == 6


def test_what_a_ramp_leaves_out_is_the_recipes() -> None:
    base = demo_scratch()
    longer = parse("demo_scratch --ramp.stages 6").stages
    assert len(longer) == 6
    assert sum(stage.epochs for stage in longer) == pytest.approx(24)
    for name in RAMPED.values():
        assert getattr(longer[0], name) == getattr(base.stages[0], name)
        assert getattr(longer[-1], name) == getattr(base.stages[-1], name)
    wider = parse("demo_scratch --ramp.image-size 96 224").stages  # the number of stages, and all else, stay
    assert [stage.image_size for stage in wider] == [96, 139, 181, 224]
    assert [replace(one, image_size=other.image_size) for one, other in zip(wider, base.stages, strict=True)] == [
        *base.stages
    ]


def test_a_stage_keeps_what_does_not_ramp_from_the_same_share_of_the_recipe() -> None:
    base, made = fonts_progressive().stages, parse("fonts_progressive --ramp.stages 9").stages
    assert [stage.crop_area for stage in made[::2]] == [stage.crop_area for stage in base]
    assert [stage.lr_factor for stage in made[::2]] == [stage.lr_factor for stage in base]
    assert parse("fonts_progressive --ramp.stages 1").stages == (
        replace(base[-1], epochs=sum(stage.epochs for stage in base)),
    )


def test_sizes_between_the_ends_are_multiples() -> None:
    sizes = [stage.image_size for stage in parse(f"demo_scratch {RAMP} --ramp.size-multiple 32").stages]
    assert sizes == [128, 192, 256, 300]


def test_epochs_alone_keep_the_recipes_proportions() -> None:
    base, made = fonts_progressive(), parse("fonts_progressive --epochs 10")
    assert [stage.epochs for stage in made.stages] == [stage.epochs / 4 for stage in base.stages]
    assert made.optimizer == replace(base.optimizer, warmup_epochs=0.25)
    paper = parse("efficientnetv2_s_paper --epochs 35").optimizer  # an exponential decay, which follows
    assert paper.decay_epochs == pytest.approx(efficientnetv2_s_paper().optimizer.decay_epochs / 10)
    assert (
        parse("demo_scratch --epochs 12 --stages.0.epochs 5 --optimizer.warmup-epochs 3").optimizer.warmup_epochs == 3
    )


def test_one_batch_size_for_all_stages() -> None:
    stages = parse("demo_scratch --batch-size 96 --stages.3.batch-size 24").stages
    assert [stage.batch_size for stage in stages] == [96, 96, 96, 24]


def test_no_flags_change_nothing() -> None:
    for recipe in RECIPES.values():
        assert scheduled(recipe(), ScheduleFlags()) == recipe()


@given(
    count=st.integers(1, 12),
    sizes=st.tuples(st.integers(8, 400), st.integers(8, 400)).map(lambda pair: tuple(sorted(pair))),
    multiple=st.integers(1, 40),
    dropout=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    epochs=st.floats(0.01, 1000),
    recipe=st.sampled_from(sorted(RECIPES)),
)
def test_a_ramp_goes_from_its_first_to_its_last_value(
    count: int,
    sizes: tuple[float, float],
    multiple: int,
    dropout: tuple[float, float],
    epochs: float,
    recipe: str,
) -> None:
    flags = RampFlags(stages=count, image_size=sizes, dropout=dropout, size_multiple=multiple)
    stages = scheduled(RECIPES[recipe](), ScheduleFlags(epochs=epochs, ramp=flags)).stages
    assert len(stages) == count
    assert sum(stage.epochs for stage in stages) == pytest.approx(epochs)
    assert stages[-1].image_size == sizes[1]
    assert stages[-1].dropout == pytest.approx(dropout[1])
    if count > 1:
        assert stages[0].image_size == sizes[0]
        assert stages[0].dropout == dropout[0]
    assert all(isinstance(stage.image_size, int) for stage in stages)
    assert [stage.image_size for stage in stages] == sorted(stage.image_size for stage in stages)

"""Generic recipes over all facts: what they make can start, and depends on nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.config import check_divisibility
from jobs.common.measured_facts import common_ratio
from jobs.recipes.facts import Facts
from jobs.recipes.generic import GENERIC, chosen_values, rules_of
from jobs.recipes.rules import CPU_SIZE, EPOCHS
from model.checks import check_image_size, check_model
from model.pretrained import NAMED_WEIGHTS
from tests.support.facts import FACTS

RECIPES = st.sampled_from(sorted(GENERIC))
WEIGHTS = st.sampled_from(["", *NAMED_WEIGHTS])
EVERY = [(recipe, weights) for recipe in GENERIC for weights in ("", *NAMED_WEIGHTS)]


@settings(deadline=None)
@given(RECIPES, FACTS, WEIGHTS)
def test_every_fact_gives_a_run_that_can_start(recipe: str, facts: Facts, weights: str) -> None:
    config = GENERIC[recipe](facts, weights=weights)
    check_divisibility(
        config.data, batch_sizes=[stage.batch_size for stage in config.stages], worker_counts=config.worker_counts
    )
    check_model(config.model)
    sizes = [stage.image_size for stage in config.stages]
    assert sizes == sorted(set(sizes))
    for size in sizes:
        check_image_size(config.model, size, config.data.shape)
    assert config.data.aspect_ratio == facts.aspect_ratio
    assert config.data.num_lanes <= 2 * facts.samples
    for stage in config.stages:
        assert stage.batch_size >= 2 * config.data.num_lanes  # Mixup pairs samples of a lane
    first, last = config.stages[0], config.stages[-1]
    for name in ("randaugment_magnitude", "mixup_alpha", "dropout"):
        assert getattr(first, name) <= getattr(last, name)
    workers = config.cluster.num_workers
    assert isinstance(workers, int)
    assert workers <= facts.gpus if facts.gpus else workers * config.cluster.cpus_per_worker <= facts.cpus
    assert {*rules_of(recipe, facts, weights).reasons} == {*chosen_values(config)}


def test_another_process_makes_the_same_configs_of_the_same_facts() -> None:
    code = """if True:
        from dataclasses import asdict
        from itertools import product
        from jobs.recipes.generic import GENERIC
        from jobs.recipes.facts import Facts
        facts = [Facts(samples=samples, short_side=400, gpus=gpus, gpu_memory=gpus * 80)
                 for samples, gpus in product((30, 3000, 600_000), (0, 1, 4))]
        print([asdict(GENERIC[name](one, weights=weights))
               for name, one, weights in product(sorted(GENERIC), facts, ("", "timm"))])"""

    def made(hash_seed: int) -> str:
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout

    assert made(1) == made(2)


@settings(deadline=None)
@given(RECIPES, FACTS, WEIGHTS, st.integers(1, 5_000_000))
def test_more_images_are_never_a_smaller_batch_nor_larger_pictures(
    recipe: str, facts: Facts, weights: str, more: int
) -> None:
    few, many = (GENERIC[recipe](one, weights=weights) for one in (facts, replace(facts, samples=facts.samples + more)))
    if few.cluster.num_workers == many.cluster.num_workers:
        assert many.stages[-1].batch_size >= few.stages[-1].batch_size
    assert many.stages[-1].image_size <= few.stages[-1].image_size


@pytest.mark.parametrize("ratio", [1.0, 0.75, 4.0])
@pytest.mark.parametrize(("recipe", "weights"), EVERY)
def test_a_run_on_cpus_is_no_longer_than_its_budget_unless_there_are_many_images(
    recipe: str, weights: str, ratio: float
) -> None:
    for samples in (30, 300, 3000, 300_000):
        facts = Facts(samples=samples, short_side=400, aspect_ratio=ratio)
        rules = rules_of(recipe, facts, weights)
        pixels = rules.epochs.value * rules.sizes.value.mean_pixels * samples
        fewest, most = EPOCHS[rules.masks, bool(rules.weights)]
        assert fewest <= rules.epochs.value <= most
        assert pixels <= 1.5 * rules.budget or rules.epochs.value == fewest
        assert rules.sizes.value.last >= (CPU_SIZE if ratio < 2 else 96 if rules.masks or weights else 64)


@settings(deadline=None)
@given(RECIPES, FACTS, WEIGHTS)
def test_long_images_have_no_more_pixels_than_photographs_of_the_size_limit(
    recipe: str, facts: Facts, weights: str
) -> None:
    rules, last = rules_of(recipe, facts, weights), GENERIC[recipe](facts, weights=weights).stages[-1]
    limit = rules_of(recipe, replace(facts, aspect_ratio=1.0, short_side=6000), weights).sizes.value.last
    least = 96 if rules.masks or rules.weights else 32
    assert last.mean_pixels(facts.aspect_ratio) <= 1.12 * 4 / 3 * limit**2 or last.image_size <= least


@pytest.mark.parametrize(
    ("shapes", "ratio"),
    [
        ([(360, 480)] * 48, 1.333),
        ([(360, 480)] * 44 + [(480, 360)] * 4, 1.333),
        ([(360, 480)] * 40 + [(480, 360)] * 8, 1.0),  # photographs, some of them high
        ([(842, 595), (1684, 1190), (1000, 700)], 0.707),
        ([(100, 110)] * 48, 1.0),
        ([(256, 256)], 1.0),
    ],
)
def test_images_that_agree_on_a_shape_keep_it(shapes: list[tuple[int, int]], ratio: float) -> None:
    assert common_ratio(shapes) == ratio


@pytest.mark.parametrize("name", ["samples", "classes", "short_side", "cpus", "gpus", "gpu_memory"])
def test_a_fact_that_can_not_be_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name.replace('_', '-')} is -1: it must be at least"):
        Facts(**{name: -1})

"""A run in words."""

from __future__ import annotations

from dataclasses import replace

from jobs.recipes.solar_cells import demo_scratch
from pipeline.run.summary import describe


def test_a_policy_is_named_where_something_follows_it() -> None:
    config = demo_scratch()
    off = tuple(replace(stage, randaugment_magnitude=0.0) for stage in config.stages)
    assert f"RandAugment's policy {config.data.randaugment_policy}." in describe(config)
    assert "policy" not in describe(replace(config, stages=off))

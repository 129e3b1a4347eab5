"""Each recipe's config is the same after it was written down and read back."""

from __future__ import annotations

import json

import pytest

from jobs.recipes.catalog import RECIPES
from pipeline.checkpoint.recorded_config import config_from
from pipeline.config import TrainConfig
from pipeline.run.provenance import recorded_config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_recipe_is_read_back_as_it_was(name: str) -> None:
    config = RECIPES[name]()
    assert config_from(TrainConfig, json.loads(json.dumps(recorded_config(config))), "here") == config

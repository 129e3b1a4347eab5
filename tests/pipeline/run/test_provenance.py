"""A run's recorded config, held against the config that goes on with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from model.config import ModelConfig
from pipeline.run.provenance import breaking, differences, recorded_config, with_defaults
from tests.support.configs import MakeConfig


def test_fields_that_an_older_version_lacked_have_their_defaults(make_config: MakeConfig) -> None:
    config = make_config(model=ModelConfig(name="efficientnet_v2_tiny"))
    old: dict[str, Any] = json.loads(json.dumps(recorded_config(config)))
    del old["trainer"]["sync_batchnorm"], old["stages"][1]["fixres"], old["adaptive"], old["model"]["rows"]
    assert breaking(differences(old, recorded_config(config)))
    assert differences(with_defaults(old, config), recorded_config(config)) == {}
    changed = replace(config, trainer=replace(config.trainer, sync_batchnorm="all"), stages=config.stages[:1])
    found = differences(with_defaults(old, changed), recorded_config(changed))
    assert found["trainer.sync_batchnorm"] == (0, "all")
    assert found["stages.1.image_size"] == (48, None)

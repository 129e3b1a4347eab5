"""A run's recorded config, held against the config that goes on with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from model.config import ModelConfig
from pipeline.run.node_share import with_node_share
from pipeline.run.provenance import breaking, differences, recorded_config, resume_differences, with_defaults
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


def test_what_is_left_to_the_node_is_no_change_of_a_resumed_run(make_config: MakeConfig) -> None:
    config = make_config(model=ModelConfig(name="efficientnet_v2_tiny"))
    config = replace(config, data=replace(config.data, loader_workers=None))
    assert config.cluster.cpus_per_worker == 0
    recorded = json.loads(json.dumps(recorded_config(with_node_share(config, [{"CPU": 4.0}]))))
    assert resume_differences(recorded, config) == {}
    given = replace(config, cluster=replace(config.cluster, cpus_per_worker=3))
    assert resume_differences(recorded, given) == {"cluster.cpus_per_worker": (1.0, 3)}

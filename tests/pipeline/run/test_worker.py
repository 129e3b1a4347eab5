from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.errors import DataError
from pipeline.run.preflight import check_run
from pipeline.run.rank import Rank
from pipeline.run.worker import load_data
from tests.support.configs import MakeConfig
from tests.support.shards import index_again


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_worker_trains_on_the_data_that_the_driver_saw(make_config: MakeConfig, tmp_path: Path, part: str) -> None:
    base = make_config()
    shutil.copytree(getattr(base.data, part), tmp_path / part)
    config = replace(base, data=replace(base.data, **{part: str(tmp_path / part)}))
    nothing: dict[str, Any] = {"controller": None, "joined": None, "number": 0, "last_stage": 0, "report_stages": 0}
    nothing["origin"] = {}
    rank = Rank(config=config, world_size=1, fingerprints=check_run(config).fingerprints, **nothing)
    assert load_data(rank).fingerprints == rank.fingerprints
    index_again(tmp_path / part)
    with pytest.raises(
        DataError, match=f"/{part} was indexed again, .* since this run was started: index it as before"
    ):
        load_data(rank)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.benchmark.scaling import main
from tests.support.shards import write_shards


@pytest.mark.soak
def test_one_and_two_workers_are_measured_in_every_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "train", [60])
    write_shards(tmp_path / "val", [16])
    flags = ["--data.train", str(tmp_path / "train"), "--data.val", str(tmp_path / "val"), "--data.num-lanes", "4"]
    assert main(["fonts_small", *flags, "--steps", "1", "--rounds", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [stage["image_size"] for stage in found["stages"]] == [32, 40, 48, 56]
    assert all(value > 0 for stage in found["stages"] for value in stage.values())
    assert found["all_reduce_ms"] > 0

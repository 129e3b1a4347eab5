from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.shards.resolve import load_manifest
from infra.devstack.server import free_ports
from jobs.benchmark import plain, scaling
from jobs.benchmark.scaling import main
from jobs.recipes.catalog import RECIPES
from model.config import ModelConfig
from pipeline.config import TrainConfig
from pipeline.task_config import ClassificationConfig, RegressionConfig, TaskConfig
from pipeline.training.task import build_task
from pipeline.training_config import OptimizerConfig
from tests.support.configs import small_config
from tests.support.shards import write_shards, write_target_shards

WITHOUT_NUMBERS = [ClassificationConfig(class_weights="auto"), RegressionConfig()]
"""Tasks whose numbers follow from the data."""


def config_of(folder: Path, task: TaskConfig) -> TrainConfig:
    write = write_target_shards if isinstance(task, RegressionConfig) else write_shards
    for split in ("train", "val"):
        write(folder / split, [48])
    optimizer = OptimizerConfig(optimizer="adamw", lr=1e-3)
    model = ModelConfig(name="efficientnet_v2_tiny")
    rules = {"best_metric": "val/mae", "best_is": "lowest"} if isinstance(task, RegressionConfig) else {}
    config = small_config(folder, str(folder), task=task, optimizer=optimizer, model=model)
    return replace(config, checkpoint=replace(config.checkpoint, **rules))


@pytest.mark.parametrize("task", WITHOUT_NUMBERS)
def test_scaling_has_the_numbers_that_follow_from_the_data(
    task: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "without_numbers", lambda: config_of(tmp_path, task))

    def measure(config: TrainConfig, options: scaling.Options) -> tuple[list[scaling.StageSpeed], float]:
        assert build_task(config.task, load_manifest(config.data.train).classes).num_outputs
        return [], 0.0

    monkeypatch.setattr(scaling, "measure", measure)
    assert main(["without_numbers", "--json"]) == 0


@pytest.mark.parametrize("task", WITHOUT_NUMBERS)
def test_the_plain_loop_has_the_numbers_that_follow_from_the_data(
    task: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "without_numbers", lambda: config_of(tmp_path, task))
    monkeypatch.setattr(sys, "argv", ["plain", "without_numbers", "--workers", "1", "--steps", "2", "--warm-up", "0"])
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", free_ports(1))):
        monkeypatch.setenv(name, str(value))
    plain.main()
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


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

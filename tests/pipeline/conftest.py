"""Small real runs for the tests of pipeline/."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support.configs import MakeConfig, small_config
from tests.support.recorders import Recorder
from tests.support.shards import write_shards
from tests.support.trainers import make_trainer

torch.set_num_threads(1)  # as a worker with one CPU has it, and quick on a busy machine


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled training and validation shards: 137 and 30 images of 4 classes."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "train", [50, 64, 23])
    write_shards(folder / "val", [30])
    return folder


@pytest.fixture
def make_config(small_data: Path, tmp_path: Path) -> MakeConfig:
    """A small recipe: two stages, seconds long; takes replacements for fields of TrainConfig."""
    return partial(small_config, small_data, str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def _whole_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    hooks = Recorder()
    make_trainer(small_config(small_data, str(tmp_path_factory.mktemp("runs"))), hooks).run()
    return hooks


@pytest.fixture
def whole_run(_whole_run: Recorder) -> Recorder:
    """What a run of `make_config()` says from its start to its end; a copy, since training goes on in a snapshot's
    tensors.
    """
    return deepcopy(_whole_run)

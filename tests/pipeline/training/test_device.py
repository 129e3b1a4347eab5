from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.training.device import accelerator, choose_algorithms, nondeterministic_operation
from pipeline.training.trainer import TrainingError
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_DETERMINISTIC", raising=False)
    choose_algorithms(deterministic=True)
    yield
    choose_algorithms(deterministic=False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("deterministic")
def test_an_operation_without_a_deterministic_algorithm_is_named(make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config(), Recorder())

    def nondeterministic(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))

    trainer.learner.model.register_forward_hook(nondeterministic)
    with pytest.raises(
        TrainingError, match=r"^trainer\.deterministic is True, but put_ has no deterministic algorithm"
    ):
        trainer.run()


@pytest.mark.usefixtures("deterministic")
def test_on_a_cpu_the_bits_are_the_same_with_and_without(make_config: MakeConfig) -> None:
    config = make_config()
    make_trainer(config, one := Recorder()).run(last_stage=0)
    choose_algorithms(deterministic=False)
    make_trainer(config, other := Recorder()).run(last_stage=0)
    assert_same_weights(one.snapshots[-1], other.snapshots[-1])


def test_other_errors_stay_what_they_are() -> None:
    assert nondeterministic_operation(RuntimeError("shapes do not match")) == ""
    told = "index_put_cuda_ does not have a deterministic implementation, but you set ..."
    assert nondeterministic_operation(RuntimeError(told)) == "index_put_cuda_"


def test_a_gpu_is_named_with_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert accelerator(torch.device("cpu")) == ""
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC version: 12.2.0\n")
    monkeypatch.setattr("pipeline.training.device._DRIVER", told)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert accelerator(torch.device("cuda")).startswith("NVIDIA H100, driver 570.86.15, CUDA ")
    monkeypatch.setattr("pipeline.training.device._DRIVER", tmp_path / "nothing")
    assert "driver unknown" in accelerator(torch.device("cuda"))

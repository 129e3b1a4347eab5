from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pipeline.training.device import DeterminismError, accelerator, choose_algorithms, operations_named
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


@pytest.mark.parametrize("probe", ["always", "never"])
@pytest.mark.usefixtures("deterministic")
def test_an_operation_without_a_deterministic_algorithm_is_named(
    make_config: MakeConfig, probe: Literal["always", "never"]
) -> None:
    base = make_config()
    trainer = make_trainer(replace(base, trainer=replace(base.trainer, probe_memory=probe)), Recorder())

    def nondeterministic(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))

    trainer.learner.model.register_forward_hook(nondeterministic)
    with pytest.raises(
        DeterminismError, match=r"^trainer\.deterministic is True, but put_ has no deterministic algorithm"
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
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"), operations_named():
        raise RuntimeError("shapes do not match")


@pytest.mark.usefixtures("deterministic")
def test_metrics_count_with_any_algorithm(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics has one for deterministic mode that takes a number for each sample and each pair of classes."""
    trainer = make_trainer(make_config(), Recorder())
    update, asked = type(trainer.task).update, list[bool]()

    def watched(*args: Any) -> None:
        asked.append(torch.are_deterministic_algorithms_enabled())
        update(*args)

    monkeypatch.setattr(type(trainer.task), "update", watched)
    trainer.evaluate(32)
    assert set(asked) == {False}
    assert torch.are_deterministic_algorithms_enabled()


def test_a_gpu_is_named_with_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert accelerator(torch.device("cpu")) == ""
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC version: 12.2.0\n")
    monkeypatch.setattr("pipeline.training.device._DRIVER", told)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert accelerator(torch.device("cuda")).startswith("NVIDIA H100, driver 570.86.15, CUDA ")
    monkeypatch.setattr("pipeline.training.device._DRIVER", tmp_path / "nothing")
    assert "driver unknown" in accelerator(torch.device("cuda"))

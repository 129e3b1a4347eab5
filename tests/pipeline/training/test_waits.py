"""Between two log rows the host must not wait for the device: no operation may turn a tensor into a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.loading.batch import Batch
from pipeline.schedule.stages import TrainingStage
from pipeline.task_config import ClassificationConfig, MultilabelConfig, SegmentationConfig, TaskConfig
from pipeline.training.inputs import StepInputs
from pipeline.training.step_meter import Meter
from pipeline.training.task import build_task
from pipeline.training_config import OptimizerConfig
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import make_trainer

WAITS = (
    torch.ops.aten._local_scalar_dense,  # int(), float(), bool(), item()
    *(torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal, torch.ops.aten._unique2),
)
"""What copies a result, or the size of one, to the host."""


class Waits(TorchDispatchMode):
    """Keeps the names of the operations for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func.overloadpacket is torch.ops.aten.index and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if masked or func.overloadpacket in WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_hot_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU `one_hot` looks at its values, on a GPU it doesn't."""
    monkeypatch.setattr(F, "one_hot", lambda labels, count: torch.eye(count, dtype=torch.int64)[labels])


def test_what_it_looks_for_is_found() -> None:
    with Waits() as waits:
        values = torch.ones(3)
        float(values.sum())
        values[values > 0]
        bool((values > 0).any())
    assert len(waits.found) >= 3


@pytest.mark.parametrize("optimizer", ["rmsprop", "sgd"])  # AdamW counts its steps in tensors of the host
def test_a_step_of_training_waits_for_nothing(make_config: MakeConfig, optimizer: str) -> None:
    how = OptimizerConfig(optimizer=optimizer, lr=1e-3, warmup_epochs=1, ema_decay=0.9, clip_norm=1.0)  # type: ignore[arg-type]
    config = make_config(optimizer=how)
    trainer = make_trainer(config, Recorder())
    span = trainer.progress.schedule.spans[0]
    stage = replace(span.stage, mixup_alpha=0.2, cutmix_alpha=1.0, dropout=0.1)
    meter = Meter(trainer.device, trainer.progress.samples_per_epoch)
    trainer.learner.regularize(stage)
    steps = zip(range(2), trainer.feed.loader(replace(span, stage=stage)), strict=False)
    for number, batch in steps:
        with Waits() as waits:
            inputs = StepInputs(batch, stage, config, trainer.task, trainer.device)
            meter.add(trainer.learner.step_in_parts(inputs.parts(9), len(inputs), seed=number, lr=1e-3))
        assert not waits.found


@pytest.mark.parametrize(
    "task", [ClassificationConfig(), ClassificationConfig(focal_gamma=2.0), SegmentationConfig(), MultilabelConfig()]
)
def test_a_tasks_targets_and_loss_wait_for_nothing(task: TaskConfig) -> None:
    built = build_task(task, ("a", "b", "c"))
    labels = (
        torch.randint(0, 2, (6, 3), dtype=torch.uint8) if isinstance(task, MultilabelConfig) else torch.arange(6) % 3
    )
    masks = torch.randint(0, 3, (6, 8, 8), dtype=torch.uint8) if isinstance(task, SegmentationConfig) else None
    batch = Batch(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), labels, torch.arange(6), masks)
    logits = torch.randn(6, 3, *([8, 8] if masks is not None else []), requires_grad=True)
    with Waits() as waits:
        built.loss(logits, built.targets(batch, torch.device("cpu")))["loss"].backward()
    assert not waits.found


def test_stage_fields_are_complete() -> None:
    """A new kind of mixing would need a place in the test above."""
    assert {name for name in TrainingStage.__dataclass_fields__ if name.endswith("_alpha")} == {
        "mixup_alpha",
        "cutmix_alpha",
    }

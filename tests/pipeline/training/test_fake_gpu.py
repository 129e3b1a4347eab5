"""The whole of a step on a GPU, without one: PyTorch's fake tensors have a device, shapes and types, but no values.

An operation whose tensors are on different devices fails on them, and so does one for which the host would have to know
a value: it would wait for the GPU. What is not tested is the backward pass, for which PyTorch asks the driver: zeros of
the weights' shapes stand in for its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from datasets.loading.batch import Batch
from datasets.transforms.mixing import MixingRule
from model.config import ModelConfig
from model.factory import build_model
from pipeline.config import TrainConfig
from pipeline.task_config import (
    ClassificationConfig,
    MultilabelConfig,
    RegressionConfig,
    SegmentationConfig,
    TaskConfig,
)
from pipeline.training.device import constant, counting
from pipeline.training.inputs import StepInputs
from pipeline.training.learner import Learner
from pipeline.training.step_meter import Meter
from pipeline.training.task import Task, build_task
from pipeline.training_config import OptimizerConfig, TrainerConfig
from tests.support.blocking_copies import BlockingCopies
from tests.support.configs import MakeConfig

GPU, CLASSES, COUNT, SIZE = torch.device("cuda", 0), ("a", "b", "c", "d", "e", "f"), 12, 32

TASKS: dict[str, TaskConfig] = {
    "classification": ClassificationConfig(class_weights=(1, 2, 3, 1, 1, 1), label_smoothing=0.1),
    "focal": ClassificationConfig(focal_gamma=2.0),
    "multilabel": MultilabelConfig(positive_weights=(1, 2, 3, 1, 1, 1)),
    "asymmetric": MultilabelConfig(loss="asymmetric"),
    "regression": RegressionConfig(target_mean=(0.0,) * 6, target_std=(1.0,) * 6),
    "segmentation": SegmentationConfig(class_weights=(1, 2, 3, 1, 1, 1), lovasz_weight=0.5),
}


@pytest.fixture(autouse=True)
def modules_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `Module.to` put new parameters in the old ones' places: it can't change a fake one, which is remembered."""

    def apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in self.children():
            child._apply(change)
        for name, weight in self._parameters.items():
            if weight is not None:
                self._parameters[name] = nn.Parameter(change(weight.detach()), weight.requires_grad)
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else change(buffer)
        return self

    monkeypatch.setattr(nn.Module, "_apply", apply)
    # A copied model's tensors are then of the same mode.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    constant.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    constant.cache_clear()  # tensors without values


def batch_of(kind: str) -> Batch:
    labels = {
        "classification": torch.arange(COUNT) % len(CLASSES),
        "multilabel": torch.ones(COUNT, len(CLASSES), dtype=torch.uint8),
        "regression": torch.ones(COUNT, len(CLASSES), dtype=torch.float64),
        "segmentation": torch.full((COUNT,), -1),
    }[kind]
    masks = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.uint8) if kind == "segmentation" else None
    images = torch.zeros(COUNT, SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    stream = torch.arange(COUNT)
    cutmix = 0.0 if kind == "regression" else 0.5
    rule = MixingRule(mixup_alpha=0.5, cutmix_alpha=cutmix, num_lanes=2)
    return Batch(images, labels, stream, masks, mixing=rule.draw(stream.numpy(), seed=1, shape=(SIZE, SIZE)))


def learner_of(base: TrainConfig, task: Task, optimizer: str) -> Learner:
    unet = task.config.kind == "segmentation"
    config = replace(
        base,
        task=task.config,
        model=ModelConfig(name="unet_efficientnet_v2_tiny" if unet else "efficientnet_v2_tiny"),
        optimizer=OptimizerConfig(optimizer=optimizer, lr=1e-3, ema_decay=0.9, clip_norm=1.0),  # type: ignore[arg-type]
        trainer=TrainerConfig(precision="fp32"),  # without a GPU there is no autocast for one
    )
    return Learner(config, build_model(config.model, num_classes=task.num_outputs), task, GPU)


@pytest.fixture
def no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(self: Tensor) -> None:
        for weight in (node.variable for node in leaves_of(self.grad_fn)):
            weight.grad = torch.zeros_like(weight)

    monkeypatch.setattr(Tensor, "backward", backward)


def leaves_of(node: Any) -> list[Any]:
    """Return the ends of an autograd graph: where gradients of weights go."""
    seen, todo, found = set(), [node], []
    while todo:
        one = todo.pop()
        if one is not None and one not in seen:
            seen.add(one)
            found += [one] if hasattr(one, "variable") else []
            todo += [parent for parent, _ in one.next_functions]
    return found


def step(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    inputs = StepInputs(batch.to(GPU), learner.config.stages[0], learner.config, learner.task, GPU)
    return learner.step_in_parts(inputs.parts(7), len(inputs), seed=1, lr=1e-3)


@pytest.mark.usefixtures("no_backward")
# Fused SGD has no kernel for fake tensors.
@pytest.mark.parametrize(("name", "optimizer"), [*((name, "adamw") for name in TASKS), ("focal", "rmsprop")])
def test_a_step_is_on_the_gpu_and_waits_for_nothing(make_config: MakeConfig, name: str, optimizer: str) -> None:
    made = batch_of(TASKS[name].kind)
    with fake_gpu() as mode:
        task = build_task(TASKS[name], CLASSES)
        learner = learner_of(make_config(), task, optimizer)
        batch, meter = made.each(mode.from_tensor), Meter(GPU, 240)
        meter.add(step(learner, batch))  # constants are copied once
        with BlockingCopies() as copies:
            terms = step(learner, batch)
            meter.add(terms)
    assert not copies.found
    assert {value.device for value in terms.values()} == {GPU}
    weights = [*learner.model.state_dict().values(), *learner.evaluated_model.state_dict().values()]
    states = [value for state in learner.optimizer.state.values() for value in state.values()]
    assert {one.device for one in (*weights, *states)} == {GPU}


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression", "segmentation"])
def test_the_counts_of_an_evaluation_stay_on_the_gpu(name: str) -> None:
    made = batch_of(TASKS[name].kind)
    with fake_gpu() as mode, torch.inference_mode():
        task, batch = build_task(TASKS[name], CLASSES), made.each(mode.from_tensor)
        metrics = task.metrics(by_class=True).to(GPU)
        shape = (COUNT, len(CLASSES), SIZE, SIZE) if name == "segmentation" else (COUNT, len(CLASSES))
        with counting():
            task.update(metrics, torch.zeros(shape, device=GPU), batch)  # constants are copied once
            with BlockingCopies() as copies:
                task.update(metrics, torch.zeros(shape, device=GPU), batch)
        states = [getattr(one, state) for one in metrics.values() for state in one._defaults]
        assert not copies.found
        assert {one.device for state in states for one in (state if isinstance(state, list) else [state])} == {GPU}


def test_what_would_wait_and_what_is_on_the_wrong_device_is_found() -> None:
    with fake_gpu(), BlockingCopies() as copies:
        there = torch.ones(3, device=GPU)
        with pytest.raises(RuntimeError, match="on the same device"):
            there + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            float(there.sum())
        torch.ones(3).to(GPU)
        there.cpu()
        torch.ones(3).to(GPU, non_blocking=True)
    assert len(copies.found) == 2

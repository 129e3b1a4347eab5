"""Options of the learner that change no result, or only what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.storage.local import LocalStorage
from pipeline.checkpoint.format import read_checkpoint, write_checkpoint
from pipeline.training_config import OptimizerConfig, TrainerConfig
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer


def test_checkpointed_activations_give_the_same_run(make_config: MakeConfig) -> None:
    plain, lean = Recorder(), Recorder()
    config = make_config()
    make_trainer(config, plain).run(last_stage=0)
    trainer = replace(config.trainer, checkpoint_activations=True)
    make_trainer(replace(config, trainer=trainer), lean).run(last_stage=0)
    assert_same_weights(plain.snapshots[-1], lean.snapshots[-1])


def test_activations_are_not_checkpointed_in_a_compiled_model() -> None:
    with pytest.raises(ValueError, match=r"^trainer.checkpoint_activations and trainer.compile are both True"):
        TrainerConfig(compile=True, checkpoint_activations=True)


def test_without_a_moving_average_there_is_none_in_memory_or_checkpoint(make_config: MakeConfig) -> None:
    off = OptimizerConfig(optimizer="rmsprop", lr=1e-3, warmup_epochs=1, ema_decay=0.0)
    whole, resumed = Recorder(), Recorder()
    trainer = make_trainer(make_config(optimizer=off), whole)
    assert trainer.learner.ema is None
    assert trainer.learner.evaluated_model is trainer.learner.model
    trainer.run(last_stage=0)
    assert all(snapshot.ema is None for snapshot in whole.snapshots)
    again = make_trainer(make_config(optimizer=off), resumed)
    again.restore(whole.snapshots[0])
    again.run(last_stage=0)
    for name, tensor in whole.snapshots[-1].model.items():
        assert torch.equal(tensor, resumed.snapshots[-1].model[name]), name


def test_a_run_with_layer_decay_resumes_bit_for_bit(make_config: MakeConfig) -> None:
    how = OptimizerConfig(optimizer="adamw", lr=1e-3, warmup_epochs=1, ema_decay=0.9, layer_decay=0.8)
    whole, resumed = Recorder(), Recorder()
    make_trainer(make_config(optimizer=how), whole).run(last_stage=0)
    again = make_trainer(make_config(optimizer=how), resumed)
    again.restore(whole.snapshots[0])
    again.run(last_stage=0)
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw"])
def test_a_resumed_optimizers_state_lies_in_memory_as_its_weights(make_config: MakeConfig, name: str) -> None:
    """With other strides, each operation of a step on a GPU is a kernel a tensor instead of one for all."""
    how = OptimizerConfig(optimizer=name, lr=1e-3, warmup_epochs=1)  # type: ignore[arg-type]
    make_trainer(make_config(optimizer=how), whole := Recorder()).run(last_stage=0)
    storage = LocalStorage(str(Path(make_config().storage) / "strides"))
    again = make_trainer(make_config(optimizer=how), Recorder())
    again.restore(read_checkpoint(storage, write_checkpoint(storage, whole.snapshots[0])))
    strides = [
        (weight.stride(), value.stride())
        for weight, state in again.learner.optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    ]
    assert len(strides) > 20
    assert all(one == other for one, other in strides)

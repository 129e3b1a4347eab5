"""Several ranks as real processes of torch.distributed, without Ray."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from model.activation_checkpoints import checkpoint_blocks
from model.config import ModelConfig
from model.factory import build_model
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import Checkpoint, SetField
from pipeline.training import distributed as parallel
from tests.support.configs import MakeConfig
from tests.support.ranks import on_ranks
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer

RANKS = 3
"""With three ranks the order of a sum matters, with two it doesn't."""


class Saving(Recorder):
    """Saves at the first decision point."""

    def __init__(self) -> None:
        both = SetField(name="lr_scale", value=0.5), Checkpoint(asked_by="ann@here")
        super().__init__(lambda progress: both if progress.cursor == 48 else ())


def _whole_and_resumed(config: TrainConfig) -> tuple[int, Snapshot, Snapshot]:
    """Return where a run saved first, its end, and the end of one that resumed there."""
    whole, resumed = Saving(), Saving()
    make_trainer(config, whole).run(0)
    again = make_trainer(config, resumed)
    again.restore(whole.snapshots[0])
    again.run(0)
    return whole.snapshots[0].state.cursor, whole.snapshots[-1], resumed.snapshots[-1]


def test_with_three_ranks_a_resumed_run_is_bit_for_bit_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    cursor, whole, resumed = on_ranks(RANKS, tmp_path, _whole_and_resumed, make_config())[0]
    assert cursor == 48
    assert whole.state.cursor == resumed.state.cursor == 264
    assert_same_weights(whole, resumed)


def test_settling_leaves_no_trace(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        parallel.data_parallel(model, torch.device("cpu"), images=(3, 8, 8))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        dist.destroy_process_group()


def _plain_and_lean() -> list[dict[str, Tensor | None]]:
    """Return this rank's buffers and averaged gradients, of a model as it is and of one that recomputes its blocks."""
    results = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = build_model(ModelConfig(name="efficientnet_v2_tiny", stochastic_depth=0.3), num_classes=4).train()
        if lean:
            checkpoint_blocks(model)
        net = parallel.data_parallel(model, torch.device("cpu"), images=(3, 32, 32))
        torch.manual_seed(dist.get_rank())
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        results.append(gradients | dict(model.named_buffers()))
    return results


def test_with_two_ranks_checkpointed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    for plain, lean in on_ranks(2, tmp_path, _plain_and_lean):
        assert plain.keys() == lean.keys()
        for name, tensor in plain.items():
            assert torch.equal(tensor, lean[name]), name

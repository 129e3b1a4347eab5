import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.training.moving_average import MovingAverage, horizon_kept
from tests.support.nets import small_net


def shake(net: nn.Module) -> None:
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data.add_(torch.randn(tensor.shape).to(tensor.dtype))


def test_it_has_tensorflows_ramp_and_averages_statistics() -> None:
    net = small_net()
    average = MovingAverage(net, 0.25)
    history: list[Tensor] = []
    for value in (1.0, 2.0, 5.0, -3.0):
        nn.init.constant_(net[4].weight, value)
        net[1].running_mean.fill_(10 * value)
        net[1].num_batches_tracked.fill_(int(abs(value)))
        average.update(net)
        history.append(average.module[4].weight[0, 0].clone())
    second = 2 / 11 * 1.0 + 9 / 11 * 2.0
    third = 0.25 * second + 0.75 * 5.0  # (1 + 2) / (10 + 2) is the ceiling itself
    fourth = 0.25 * third + 0.75 * -3.0
    assert [v.item() for v in history] == pytest.approx([1.0, second, third, fourth], rel=1e-6)
    assert average.module[1].running_mean[0].item() == pytest.approx(10 * fourth, rel=1e-6)
    assert average.module[1].num_batches_tracked.item() == 3


def test_its_numbers_and_names_are_those_of_pytorchs_class() -> None:
    """Checkpoints of earlier versions were written by that class: a run that goes on from one has the same bits."""
    net, decay = small_net(), 0.9

    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + int(count)) / (10 + int(count))))
        else:
            torch._foreach_copy_(averages, currents)

    theirs = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    ours = MovingAverage(net, decay)
    for step in range(6):
        shake(net)
        theirs.update_parameters(net)
        ours.update(net)
        if step == 2:
            state = theirs.state_dict()
            ours = MovingAverage(small_net(), decay)
            ours.load_state_dict(state)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_it_reaches_as_many_samples_back_whatever_the_batch() -> None:
    """A step of 96 samples at 24's decay forgot a quarter as fast as four steps of 24."""
    decay = 0.98
    assert horizon_kept(decay, 24, 24) == decay  # the same bits where all batches are equal
    assert horizon_kept(decay, 96, 24) == pytest.approx(decay**4)
    assert horizon_kept(decay, 12, 24) ** 2 == pytest.approx(decay)

    def weight_of_the_past(batch: int, steps: int) -> float:
        net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(net.weight)
        average = MovingAverage(net, horizon_kept(decay, batch, 24))
        average.updates = 1000
        nn.init.zeros_(net.weight)
        for _ in range(steps):
            average.update(net)
        return average.module.weight.item()

    assert weight_of_the_past(96, 5) == pytest.approx(weight_of_the_past(24, 20))

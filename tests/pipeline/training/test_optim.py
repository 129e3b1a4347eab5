import io
import math
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.factory import build_model
from pipeline.schedule.stages import TrainingStage
from pipeline.training.learning_rate import learning_rate, stage_learning_rate
from pipeline.training.moving_average import MovingAverage
from pipeline.training.optim import (
    RMSpropTF,
    build_optimizer,
    load_state,
    parameter_groups,
    set_rate,
)
from pipeline.training_config import OptimizerConfig
from tests.support.nets import small_net


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, average: MovingAverage | None = None) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + step)
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update(net)


def test_rmsprop_is_tensorflows_formula() -> None:
    """Against a plain float64 transcription of TensorFlow's documented update, with a changing rate."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3))
    gradients = rng.normal(size=(6, 5, 3)) * 0.1
    rates = [0.0, 0.1, 0.256, 0.256, 0.1, 0.05]
    decay, momentum, eps, weight_decay = 0.9, 0.9, 1e-3, 1e-2

    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = RMSpropTF([parameter], lr=1.0, momentum=momentum, decay=decay, eps=eps, weight_decay=weight_decay)
    mean_square, buffer, expected = np.ones_like(weight), np.zeros_like(weight), weight.copy()
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient + weight_decay * expected
        mean_square = decay * mean_square + (1 - decay) * g * g
        buffer = momentum * buffer + rate * g / np.sqrt(mean_square + eps)
        expected = expected - buffer

        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


def test_rmsprop_first_step_by_hand() -> None:
    # ms = 0.9 * 1 + 0.1 * 4 = 1.3; w = 1 - 0.5 * 2 / sqrt(1.3 + 0.1); eps outside of the root would give 0.1937...
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    parameter.grad = torch.tensor([2.0], dtype=torch.float64)
    RMSpropTF([parameter], lr=0.5, eps=0.1).step()
    assert parameter.item() == pytest.approx(1 - 1 / math.sqrt(1.4), abs=1e-12)


def test_rmsprop_leaves_parameters_without_gradient_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    optimizer = RMSpropTF([used, unused], weight_decay=0.1)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert unused not in optimizer.state


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw"])
def test_a_restored_optimizer_continues_bit_for_bit(name: str) -> None:
    config = OptimizerConfig(optimizer=name, lr=0.01, weight_decay=1e-4)  # type: ignore[arg-type]
    straight = small_net()
    optimizer = build_optimizer(config, straight)
    average = MovingAverage(straight, config.ema_decay)
    train(straight, optimizer, range(3), average)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict(), "ema": average.state_dict()}, file)
    train(straight, optimizer, range(3, 6), average)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = small_net()
    resumed_optimizer = build_optimizer(config, resumed)
    resumed_average = MovingAverage(resumed, config.ema_decay)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    resumed_average.load_state_dict(saved["ema"])
    train(resumed, resumed_optimizer, range(3, 6), resumed_average)

    for one, other in ((straight, resumed), (average, resumed_average)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


def test_no_decay_on_bias_norm_and_position_tables() -> None:
    net = small_net()
    net.register_parameter("relative_position_bias_table", nn.Parameter(torch.ones(4, 2)))
    decayed, free = parameter_groups(net, 0.3)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {tuple(p.shape) for p in decayed["params"]} == {(8, 3, 3, 3), (4, 288)}
    assert len(free["params"]) == 5


def test_frozen_parameters_are_left_out() -> None:
    net = small_net().requires_grad_(False)
    net[4].requires_grad_(True)
    optimizer = build_optimizer(OptimizerConfig(), net)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="frozen"):
        build_optimizer(OptimizerConfig(), net.requires_grad_(False))


def test_papers_learning_rate() -> None:
    config = OptimizerConfig()
    n = 1_281_000

    def rate(epoch: float) -> float:
        return learning_rate(config, cursor=round(epoch * n), samples_per_epoch=n, total_samples=350 * n)

    assert rate(0) == 0
    assert rate(2.5) == pytest.approx(0.128)
    # Two periods of 2.4 epochs have passed when the warm-up ends, as in the authors' code.
    assert rate(5) == pytest.approx(0.256 * 0.97**2)
    assert rate(7.1) == pytest.approx(0.256 * 0.97**2)
    assert rate(7.3) == pytest.approx(0.256 * 0.97**3)
    assert rate(349.9) == pytest.approx(0.256 * 0.97**145)


def test_smooth_exponential_cosine_constant_and_floor() -> None:
    def rate(epoch: float, **fields: object) -> float:
        config = OptimizerConfig(lr=1.0, **fields)  # type: ignore[arg-type]
        return learning_rate(config, cursor=round(epoch * 1000), samples_per_epoch=1000, total_samples=10_000)

    assert rate(6, schedule="exponential", staircase=False) == pytest.approx(0.97 ** (6 / 2.4))
    assert rate(2, schedule="cosine", warmup_epochs=2) == pytest.approx(1)
    assert rate(6, schedule="cosine", warmup_epochs=2) == pytest.approx(0.5)
    assert rate(10, schedule="cosine", warmup_epochs=2) == pytest.approx(0, abs=1e-12)
    assert rate(12, schedule="cosine", warmup_epochs=2) == pytest.approx(0, abs=1e-12)
    assert rate(10, schedule="cosine", warmup_epochs=2, min_lr=0.01) == 0.01
    assert rate(10, schedule="cosine", warmup_epochs=10) == pytest.approx(1)
    assert rate(0, schedule="constant", warmup_epochs=0) == 1


def test_a_rate_that_is_for_a_batch_is_scaled_with_it() -> None:
    def rate(batch: int, per_batch: int) -> float:
        stage = TrainingStage(image_size=32, epochs=1, batch_size=batch, lr_factor=0.5)
        config = OptimizerConfig(lr=0.4, lr_per_batch=per_batch, schedule="constant", warmup_epochs=0)
        return stage_learning_rate(config, stage, cursor=0, samples_per_epoch=100, total_samples=100)

    assert rate(64, 0) == rate(4096, 0) == 0.2
    assert rate(64, 256) == pytest.approx(0.05)
    assert rate(256, 256) == 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_per_batch": -1}, "lr_per_batch=-1"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"ema_decay": 1.5}, "ema_decay=1.5"),
        ({"decay_factor": 0.0}, "decay_factor=0.0"),
        ({"decay_epochs": 0.0}, "decay_epochs=0.0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
    ],
)
def test_a_bad_field_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


@pytest.mark.parametrize("name", ["lamb", "lion", "muon"])
def test_timms_optimizers_keep_the_groups_learn_and_resume_bit_for_bit(name: str) -> None:
    config = OptimizerConfig(optimizer=name, weight_decay=0.05)  # type: ignore[arg-type]
    whole, killed, resumed = small_net(), small_net(), small_net()
    optimizer = build_optimizer(config, whole)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert [decays[id(one)] for one in whole.parameters()] == [0.05 if p.ndim > 1 else 0.0 for p in whole.parameters()]
    start = [weight.clone() for weight in whole.parameters()]
    train(whole, optimizer, range(6))
    assert all(not torch.equal(one, before) for one, before in zip(whole.parameters(), start, strict=True))

    before = build_optimizer(config, killed)
    train(killed, before, range(3))
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    resumed.load_state_dict(killed.state_dict())
    after = build_optimizer(config, resumed)
    after.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    train(resumed, after, range(3, 6))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_leaves_the_classifier_and_vectors_to_adamw() -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=4)
    optimizer = build_optimizer(OptimizerConfig(optimizer="muon"), model)
    by_adamw = {id(one) for group in optimizer.param_groups if group["use_fallback"] for one in group["params"]}
    names = {name for name, one in model.named_parameters() if id(one) in by_adamw}
    assert "classifier.1.weight" in names
    assert names - {"classifier.1.weight"} == {name for name, one in model.named_parameters() if one.ndim == 1}


def test_lower_layers_have_lower_rates() -> None:
    model = build_model(ModelConfig(name="efficientnet_v2_tiny"), num_classes=4)
    optimizer = build_optimizer(OptimizerConfig(layer_decay=0.5), model)
    set_rate(optimizer, 0.8)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert rates[id(model.get_parameter("classifier.1.weight"))] == 0.8
    assert rates[id(model.get_parameter("classifier.1.bias"))] == 0.8
    assert rates[id(model.get_parameter("features.0.0.weight"))] == 0.8 * 0.5**12
    assert len(rates) == len(list(model.parameters()))


def test_without_layer_decay_the_groups_are_those_of_older_checkpoints() -> None:
    groups = build_optimizer(OptimizerConfig(), small_net()).state_dict()["param_groups"]
    assert [group["params"] for group in groups] == [[0, 1], [2, 3, 4, 5]]
    assert not any("lr_share" in group for group in groups)


def test_a_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ValueError, match=r"^optimizer.optimizer is lion, which timm has: `uv pip install -U timm`"):
        build_optimizer(OptimizerConfig(optimizer="lion"), small_net())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("fused_first", [False, True])
def test_a_checkpoint_goes_on_with_the_kernels_of_the_device_that_it_is_read_on(name: str, fused_first: bool) -> None:
    """A GPU's are fused, a CPU's are not: neither may come with the state."""
    config = OptimizerConfig(optimizer=name, lr=0.01)  # type: ignore[arg-type]
    whole, resumed = (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(2))
    kernels = [{"foreach": None, "fused": True}, {"foreach": True, "fused": None}]
    before, after = kernels if fused_first else kernels[::-1]
    optimizers = [build_optimizer(config, net) for net in (whole, resumed)]
    for optimizer, kernel in zip(optimizers, (before, after), strict=True):
        for group in optimizer.param_groups:
            group |= kernel
    train(whole, optimizers[0], range(3))
    resumed.load_state_dict(whole.state_dict())
    load_state(optimizers[1], deepcopy(optimizers[0].state_dict()))
    assert all(group[key] == value for group in optimizers[1].param_groups for key, value in after.items())
    for net, optimizer in ((whole, optimizers[0]), (resumed, optimizers[1])):
        train(net, optimizer, range(3, 6))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)

"""Each schedule against PyTorch's scheduler of the same name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from pipeline.schedule.decisions import DecisionRecord, ExtendStage
from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import TrainingStage
from pipeline.training.learning_rate import learning_rate
from pipeline.training_config import OptimizerConfig

STEPS = 20


def _theirs(make: Callable[[SGD], LRScheduler]) -> list[float]:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _ours(config: OptimizerConfig, total: int) -> list[float]:
    return [
        learning_rate(config, cursor=step * 8, samples_per_epoch=8, total_samples=total * 8) for step in range(STEPS)
    ]


SCHEDULERS: dict[str, tuple[OptimizerConfig, int, Callable[[SGD], LRScheduler]]] = {
    "linear": (
        OptimizerConfig(lr=0.4, warmup_epochs=0, schedule="linear"),
        STEPS,
        lambda one: lr_scheduler.LinearLR(one, start_factor=1.0, end_factor=0.0, total_iters=STEPS),
    ),
    "polynomial": (
        OptimizerConfig(lr=0.4, warmup_epochs=0, schedule="polynomial", power=3.0),
        STEPS,
        lambda one: lr_scheduler.PolynomialLR(one, total_iters=STEPS, power=3.0),
    ),
    "cosine": (
        OptimizerConfig(lr=0.4, warmup_epochs=0, schedule="cosine"),
        STEPS,
        lambda one: lr_scheduler.CosineAnnealingLR(one, T_max=STEPS),
    ),
    "exponential": (
        OptimizerConfig(lr=0.4, warmup_epochs=0, decay_factor=0.9, decay_epochs=1.0, staircase=False),
        STEPS,
        lambda one: lr_scheduler.ExponentialLR(one, gamma=0.9),
    ),
    "one-cycle": (  # PyTorch's peak is at step pct_start * total - 1, its end at total - 1
        OptimizerConfig(lr=0.4, warmup_epochs=5, schedule="one-cycle"),
        STEPS,
        lambda one: lr_scheduler.OneCycleLR(one, max_lr=0.4, total_steps=STEPS + 1, pct_start=6 / (STEPS + 1)),
    ),
    "wsd": (
        OptimizerConfig(lr=0.4, warmup_epochs=0, schedule="wsd", decay_share=0.25),
        STEPS,
        lambda one: lr_scheduler.SequentialLR(
            one,
            [
                lr_scheduler.ConstantLR(one, factor=1.0),
                lr_scheduler.LinearLR(one, start_factor=1.0, end_factor=0.0, total_iters=5),
            ],
            milestones=[15],
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_schedule_is_pytorchs(name: str) -> None:
    config, total, make = SCHEDULERS[name]
    assert _ours(config, total) == pytest.approx(_theirs(make), abs=1e-9)


ALL = ("exponential", "cosine", "linear", "polynomial", "one-cycle", "wsd", "constant")


@settings(deadline=None)
@given(
    schedule=st.sampled_from(ALL),
    warmup=st.floats(0, 30),
    total=st.integers(1, 1000),
    cursor=st.integers(0, 1200),
    min_lr=st.floats(0, 0.1),
)
def test_a_rate_is_within_its_limits(schedule: str, warmup: float, total: int, cursor: int, min_lr: float) -> None:
    config = OptimizerConfig(lr=0.4, warmup_epochs=warmup, schedule=schedule, min_lr=min_lr)  # type: ignore[arg-type]
    rate = learning_rate(config, cursor=cursor, samples_per_epoch=10, total_samples=total)
    assert (0 if cursor / 10 < warmup else min_lr) <= rate <= 0.4 + 1e-12


def test_with_wsd_an_extension_before_the_decay_keeps_the_rate_until_then() -> None:
    """And one of a run that is at its end gets the rate of the end: there is no way back up."""
    config = OptimizerConfig(lr=0.4, warmup_epochs=1, schedule="wsd", decay_share=0.2)
    stages, epoch = (TrainingStage(image_size=32, epochs=10, batch_size=24),), 240

    def rates(cursor: int) -> list[float]:
        plan = TrainingSchedule(stages, epoch, (DecisionRecord(cursor, 0, ExtendStage(epochs=5)),))
        places = [plan.position(now) for now in range(epoch, plan.total_samples, 24)]
        total = plan.planned_samples
        return [learning_rate(config, cursor=now, samples_per_epoch=epoch, total_samples=total) for now in places]

    early, late = rates(5 * epoch), rates(10 * epoch)
    assert early[:80] == [0.4] * 80  # 9 of the 15 epochs after warm-up
    assert early == sorted(early, reverse=True)
    assert 0 < early[-1] < 0.02
    assert late[-50:] == [0.0] * 50


def test_values_that_no_schedule_can_have_are_refused() -> None:
    for field, value in (("power", 0.0), ("decay_share", 0.0), ("decay_share", 1.5), ("layer_decay", 0.0)):
        with pytest.raises(ValueError, match=f"^{field}={value}: must be"):
            OptimizerConfig(**{field: value})  # type: ignore[arg-type]

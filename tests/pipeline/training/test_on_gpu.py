"""The loop on a GPU. Each test runs on the CPU as well, where it can be wrong in itself only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from infra.storage.open import open_storage
from pipeline.checkpoint.format import Snapshot, read_checkpoint, write_checkpoint
from pipeline.checkpoint.tensors import pack, pack_nested
from pipeline.config import TrainConfig
from pipeline.schedule.decisions import Checkpoint, Stop
from pipeline.schedule.policy import Progress
from pipeline.training.device import accelerator, choose_algorithms
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import make_trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "1")
    choose_algorithms(deterministic=True)
    yield
    choose_algorithms(deterministic=False)
    torch.backends.cudnn.benchmark = False


class Stopping(Recorder):
    """Saves at each log row, and stops at the `last`-th."""

    def __init__(self, last: int) -> None:
        super().__init__(self.saved)
        self.last, self.devices = last, set[torch.device]()

    def saved(self, progress: Progress) -> tuple[Checkpoint | Stop]:
        return (Stop() if len(self.snapshots) + 1 == self.last else Checkpoint(),)

    def stage_started(self, span: object, images: Tensor) -> None:
        self.devices.add(images.device)


def digest(snapshot: Snapshot) -> str:
    tensors = (*pack(snapshot.model), *pack(snapshot.ema or {}), *pack_nested(snapshot.optimizer))
    return hashlib.sha256(b"".join(bytes(part) for part in tensors)).hexdigest()


def trained(config: TrainConfig, device: torch.device, intervals: int, start: Snapshot | None = None) -> list[Snapshot]:
    trainer = make_trainer(config, hooks := Stopping(intervals), device)
    if start is not None:
        trainer.restore(start)
    trainer.run()
    return hooks.snapshots


def test_all_of_a_step_is_on_the_device_and_a_snapshot_is_not(make_config: MakeConfig, device: torch.device) -> None:
    trainer = make_trainer(make_config(), hooks := Stopping(1), device)
    trainer.run()
    learner = trainer.learner
    state = [value for values in learner.optimizer.state.values() for value in values.values()]
    tensors = [tensor for model in learner.models for tensor in (*model.parameters(), *model.buffers())]
    assert len(learner.models) == 2
    assert state
    assert {tensor.device.type for tensor in [*tensors, *state]} == {device.type}
    assert {one.type for one in hooks.devices} == {device.type}
    (snapshot,) = hooks.snapshots
    kept = [*snapshot.model.values(), *(snapshot.ema or {}).values()]
    assert {tensor.device.type for tensor in kept} == {"cpu"}
    assert bool(accelerator(device)) == (device.type == "cuda")


def test_batches_of_the_loader_are_in_pinned_memory_where_a_gpu_fetches_them(make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config(), Recorder())
    batch = next(iter(trainer.feed.loader(trainer.progress.schedule.spans[0])))
    assert batch.images.is_pinned() == batch.labels.is_pinned() == torch.cuda.is_available()
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("deterministic")
def test_a_stopped_and_resumed_run_ends_with_the_hash_of_a_whole_one(
    make_config: MakeConfig, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = make_config()
    config = replace(base, trainer=replace(base.trainer, deterministic=True))
    whole = trained(config, device, 2)
    storage = open_storage(str(tmp_path_factory.mktemp("checkpoints")))
    (resumed,) = trained(config, device, 1, read_checkpoint(storage, write_checkpoint(storage, whole[0])))
    assert digest(whole[0]) != digest(whole[1]) == digest(resumed)


def losses(config: TrainConfig, device: torch.device, steps: int) -> list[float]:
    config = replace(config, trainer=replace(config.trainer, log_every=1, micro_batch_size=12))
    make_trainer(config, hooks := Stopping(steps), device).run()
    return [row["train/loss"] for _, row in hooks.rows]


def test_the_numbers_are_those_of_a_cpu(
    make_config: MakeConfig, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose random numbers are each device's own, and without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    base = make_config()
    stages = tuple(replace(stage, dropout=0.0, stochastic_depth=0.0) for stage in base.stages)
    config = replace(base, stages=stages, trainer=replace(base.trainer, precision="fp32"))
    expected, got = (losses(config, one, 4) for one in (torch.device("cpu"), device))
    assert got[0] == pytest.approx(expected[0], rel=1e-4)
    assert got == pytest.approx(expected, rel=1e-2)  # each step makes the difference of the one before larger
    assert len(set(expected)) == 4

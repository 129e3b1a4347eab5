"""Model, optimizer and moving average over all ranks, and one step of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.activation_checkpoints import checkpoint_blocks
from model.regularization import head_and_norms, set_dropout, set_stochastic_depth
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.checkpoint.format import Snapshot
from pipeline.checkpoint.host_copy import to_host
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage
from pipeline.training.batch_norm import average_statistics, momentum_share, running_norms
from pipeline.training.device import begin_pass, eagerly
from pipeline.training.distributed import buffers_kept, data_parallel
from pipeline.training.evaluation import autocast, compute_type, logits_of
from pipeline.training.memory import largest_that_fits
from pipeline.training.moving_average import MovingAverage, horizon_kept
from pipeline.training.optim import build_optimizer, load_state, set_rate
from pipeline.training.sync_batch_norm import synchronize, unsynchronized
from pipeline.training.task import Task


def step_seed(seed: int, cursor: int, rank: int) -> int:
    """Return the seed of one step's dropout on one rank: a pure function, so no RNG state is ever saved."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{cursor}/{rank}".encode(), digest_size=7).digest())


class Learner:
    """One rank's model, optimizer and moving average."""

    def __init__(self, config: TrainConfig, model: nn.Module, task: Task, device: torch.device) -> None:
        self.config, self.task, self.device = config, task, device
        self.model = model.to(device).to(memory_format=torch.channels_last)
        if config.trainer.checkpoint_activations:
            checkpoint_blocks(self.model)
        decay = config.optimizer.ema_decay
        self.ema = MovingAverage(self.model, decay) if decay else None
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self._norms = running_norms(self.model)
        self._all_norms = [norm for one in self.models for norm in running_norms(one)]
        self._fixed: list[nn.Parameter] = []
        synchronize(self.model, config.trainer, self.device)  # not the average, which each rank evaluates by itself
        self._net = self._parallel(self.model)
        if config.trainer.compile:
            self._compile()

    @property
    def models(self) -> list[nn.Module]:
        """The model, and the moving average if there is one."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    @property
    def evaluated_model(self) -> nn.Module:
        """The moving average, or the model if there is none."""
        return self.model if self.ema is None else self.ema.module

    def average_statistics(self) -> None:
        """Make the norms' running statistics, and their moving average, the same on all ranks: their mean."""
        average_statistics(self._all_norms)

    def regularize(self, stage: TrainingStage) -> None:
        """Set a stage's dropout and stochastic depth on the live model, and which of its weights stay as they are."""
        trained = head_and_norms(self.model) if stage.fixres else set(self.model.parameters())
        self._fixed = [weight for weight in self.model.parameters() if weight not in trained]
        set_dropout(self.model, stage.dropout)
        set_stochastic_depth(self.model, self.config.stochastic_depth_of(stage))

    def keep_horizon(self, stage: TrainingStage) -> None:
        """Have the moving average reach as many samples back in a stage as with the last stage's batch."""
        if self.ema is not None:
            last = self.config.stages[-1].batch_size
            self.ema.decay = horizon_kept(self.config.optimizer.ema_decay, stage.batch_size, last)

    def step(self, images: Tensor, targets: Tensor, *, seed: int, lr: float, micro: int) -> dict[str, Tensor]:
        """Take one optimizer step on inputs that are there, [B, C, H, W] and their targets; see `step_in_parts`."""
        parts = zip(images.split(micro), targets.split(micro), strict=True)
        return self.step_in_parts(parts, len(images), seed=seed, lr=lr)

    def step_in_parts(
        self, parts: Iterable[tuple[Tensor, Tensor]], count: int, *, seed: int, lr: float
    ) -> dict[str, Tensor]:
        """Take one optimizer step; return the task's terms, on the device, unsynchronized.

        Args:
            parts: this rank's samples, cut into what a forward pass takes: images float [b, C, H, W], and what the
                task's loss takes for them. Each is made when it is its turn; gradients are accumulated over them.
            count: samples in all of them.
            seed: of dropout and stochastic depth.
            lr: learning rate.

        Raises:
            torch.OutOfMemoryError: a pass doesn't fit.
        """
        torch.manual_seed(seed)
        self._net.train()
        begin_pass(self.config.trainer)  # once: gradients of the first pass are in a graph's memory until the update
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        done = 0
        for x, y in parts:
            done += len(x)
            share = len(x) / count
            losses = self._pass(x, y, share, sync=done == count)
            for name, value in losses.items():
                terms[name] = terms[name] + value.detach() * share
        self._update(lr)
        return terms

    def _pass(self, x: Tensor, y: Tensor, share: float, *, sync: bool) -> dict[str, Tensor]:
        """Add the gradient of some samples, weighted by their share of the batch; return the task's terms."""
        alone = isinstance(self._net, DistributedDataParallel) and not sync
        with self._net.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with autocast(self.config.trainer, self.device), momentum_share(self._norms, share):
                logits = self._net(x)
            losses = self.task.loss(logits, y)
            (losses["loss"] * share).backward()
        return losses

    def probe(self, batch: Callable[[int], tuple[Tensor, Tensor]], most: int) -> int:
        """Return how many samples, `most` or a half, a quarter, ... of it, fit into one pass on every rank.

        Nothing of it stays in the model. Memory that later steps need is held: for the optimizer's state, which comes
        with the first step, and for the gradients of a step's passes before.

        Args:
            batch: makes images and targets of so many samples, as the largest stage has them.
            most: samples of this worker in a step.

        Raises:
            MemoryLimitError: not even one fits.
        """
        self._net.train()

        def try_pass(count: int) -> None:
            held: list[Tensor] = []
            try:
                for weight in self.model.parameters():
                    held += torch.empty_like(weight), torch.empty_like(weight)
                    weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
                self._pass(*batch(count), 1.0, sync=False)
            finally:
                held.clear()
                self.model.zero_grad(set_to_none=True)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

        # Ranks may try another number of passes, and each size that is tried would be compiled.
        with buffers_kept(self.model), unsynchronized(self.model), eagerly(self.config.trainer):
            fits = torch.tensor(largest_that_fits(try_pass, most), device=self.device)
        if dist.is_initialized():
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
        return int(fits)

    def compile_for(self, image_size: int, count: int, share: float) -> None:
        """Compile the model for passes of `count` samples of a size, with the dropout that is set now.

        They are a `share` of this worker's samples of a step, on which the norms' momentum depends.

        Nothing of it stays in the model: gradients go nowhere, so that no rank waits for another one's, and buffers are
        put back. Each step seeds its own random numbers.
        """
        self._net.train()
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        alone = isinstance(self._net, DistributedDataParallel)
        with buffers_kept(self.model), self._net.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with autocast(self.config.trainer, self.device), momentum_share(self._norms, share):
                begin_pass(self.config.trainer)
                logits = self._net(self._zeros(count, image_size).to(compute_type(self.config.trainer, self.device)))
            torch.autograd.grad(logits.float().sum(), weights, allow_unused=True)

    @torch.inference_mode()
    def compile_evaluation(self, image_size: int) -> None:
        """Compile the model that is evaluated for the batches of an evaluation at a size."""
        trainer = self.config.trainer
        count = trainer.eval_batch_size
        logits_of(self.evaluated_model.eval(), self._zeros(count, image_size), trainer, self.device, count)

    def _zeros(self, count: int, image_size: int) -> Tensor:
        shape = count, self.config.model.in_channels, *self.config.data.shape(image_size)
        return torch.zeros(shape, device=self.device).to(memory_format=torch.channels_last)

    def to_host(self) -> dict[str, Any]:
        """Copy all tensors to host memory, named as in a `Snapshot`."""
        copies: dict[str, Any] = to_host(
            {
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )
        return copies

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a snapshot's tensors.

        Raises:
            CheckpointError: the snapshot is of another model or optimizer.
        """
        try:
            self.model.load_state_dict(snapshot.model)
            load_state(self.optimizer, snapshot.optimizer)
            self._match_memory_formats()
            if self.ema is not None:
                self.ema.load_state_dict(snapshot.ema or {})
        except (RuntimeError, ValueError, KeyError) as error:
            summary = " ".join(str(error).split())[:300]
            raise CheckpointError(f"the checkpoint doesn't fit this model or optimizer: {summary}") from error

    def _match_memory_formats(self) -> None:
        """Give the optimizer's state the strides of its parameters, which a checkpoint doesn't hold.

        With others, each of its operations is one kernel a tensor instead of one for all.
        """
        for weight, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def _update(self, lr: float) -> None:
        for weight in self._fixed:  # after the ranks' sum, which DDP makes of all: an optimizer passes over these
            weight.grad = None
        if self.config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        set_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)

    def _compile(self) -> None:
        """Compile the model and its average, in place: a graph for each shape, as one for all shapes would be slower.

        The module inside DDP and not DDP itself, as PyTorch advises ("Where to apply torch.compile"). Dynamo cuts its
        graph where a bucket of gradients is full all the same, since it runs inside DDP's forward: ranks add up the
        first buckets while the rest of the backward pass runs.
        """
        from torch._dynamo import config

        num_sizes = sum(len(stage.image_sizes) + 1 for stage in self.config.stages)
        config.recompile_limit = max(config.recompile_limit, 8 * num_sizes + 8)  # beyond it nothing more is compiled
        for model in self.models:
            model.compile(dynamic=False, mode=self.config.trainer.compile_mode)

    def _parallel(self, model: nn.Module) -> nn.Module:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return model
        images = (self.config.model.in_channels, *self.config.data.shape(self.config.stages[0].image_size))
        return data_parallel(model, self.device, images=images)

"""The training loop: plain PyTorch, with no cluster, storage or tracking in it. Those are reached through hooks.

Read `Trainer.run` for the run, `Trainer.fit` for a stage, `Learner.step` for a step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from datasets.loading.corruption import MAX_MESSAGES, corruption_error, is_too_much
from datasets.loading.sample_order import sample_order
from datasets.shards.manifest import DatasetManifest
from pipeline.checkpoint.format import Snapshot
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.schedule.adaptive import PLAIN_TRAINING_LOSS
from pipeline.schedule.decisions import (
    PAUSE_POLL_S,
    Checkpoint,
    Decision,
    ExtendStage,
    NewGroup,
    NextStage,
    Stop,
    in_order,
    leaving,
)
from pipeline.schedule.schedule import crossed
from pipeline.schedule.stages import REGULARIZATION, StageSpan
from pipeline.training.device import operations_named
from pipeline.training.distributed import agreed, gathered, rank_and_size
from pipeline.training.evaluator import Evaluator
from pipeline.training.final_scores import final_scores
from pipeline.training.hooks import TrainHooks
from pipeline.training.inputs import StepInputs
from pipeline.training.learner import Learner, step_seed
from pipeline.training.memory import OutOfMemoryError, allocation_errors, micro_batch, release
from pipeline.training.prefetch import Feed
from pipeline.training.profiler import StepProfiler
from pipeline.training.progress import TrainingProgress
from pipeline.training.setup import prepare
from pipeline.training.step_meter import Meter
from pipeline.training.task import Task
from pipeline.training.transfer import Transfer

log = logging.getLogger(__name__)

STAGE_METRICS = (
    *("image_size", "low_frequency_of", "random_size_share", "batch_size", "lr_factor"),
    *REGULARIZATION,
)
"""Fields of a stage that are logged with its metrics, so that charts show where a stage begins."""


class TrainingError(ValueError):
    """Training can't continue, and trying again would fail again."""


class Trainer:
    """One rank of a run: what learns, and the loop over stages."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        task: Task,
        train: DatasetManifest,
        val: DatasetManifest,
        hooks: TrainHooks,
        metadata: RunMetadata,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.task, self.hooks, self.metadata = config, task, hooks, metadata
        self.rank, self.world_size = rank_and_size()
        self.device = device or torch.device("cpu")
        order = sample_order(config.data, train, seed=config.seed)
        self.progress = TrainingProgress(config, order.samples_per_epoch)
        self.learner = Learner(config, model, task, self.device)
        self._last_save_s = time.monotonic()
        self.feed = Feed(config, train, self.rank, self.world_size, self.device)
        self.transfer = Transfer(self.device)
        self.evaluator = Evaluator(config, task, train=train, val=val, device=self.device, heartbeat=hooks.heartbeat)
        self.profiler = StepProfiler(config.trainer.profile_steps if self.rank == 0 else 0, hooks.profiled)
        self._by_class: Tensor | None = None
        self._evaluated_at = -1
        self._damaged: list[str] = []

    @property
    def state(self) -> TrainState:
        """What the run is, besides its tensors."""
        return self.progress.state

    # The run ---------------------------------------------------------------------------------------------------------

    @operations_named()
    def run(self, last_stage: int | None = None) -> Decision:
        """Train from the state's cursor to the end of `last_stage` (default: of the schedule).

        Returns `Stop` if an operator stopped the run, `NewGroup` if other workers are to continue with it, else
        `NextStage`: the stages asked for are done.
        """
        prepare(self.progress, self.learner, self.feed, last_stage, self.hooks.heartbeat)
        while (span := self.progress.span) is not None and (last_stage is None or span.index <= last_stage):
            decision = self.fit(span, last_stage)
            if isinstance(decision, Stop | NewGroup) and self.progress.span is not None:  # at the very end it is done
                self.feed.close()
                return decision
        if self.progress.span is None:
            self._finish()
        return NextStage()

    def _finish(self) -> None:
        """Compare and show what the run has made. Its last checkpoint is written: nothing of this lets it fail."""
        try:
            if self._evaluated_at != self.state.cursor:  # by a group that was lost before it showed anything
                self.evaluate(self.config.trainer.eval_size(self.config.stages[-1]))
            self._compare_weights()
            if self.rank == 0:
                self._show()
        except Exception as error:
            log.warning("the run is done, but its last comparison and pictures could not be made: %s", error)

    def _compare_weights(self) -> None:
        """Evaluate the weights beside their moving average, once, since which of them is better depends on the run."""
        if self.learner.ema is None:
            return
        size = self.config.trainer.eval_size(self.config.stages[-1])
        weights, _ = self.evaluator.scores(self.learner.model, size)
        known = {name.removeprefix("val/"): value for name, value in self.state.metrics_here().items()}
        average = known if known.keys() >= weights.keys() else self.evaluate(size)
        scores = final_scores(weights, average, self.config.checkpoint)
        self._tell(scores.rows)
        if self.rank == 0:
            self.hooks.weights_compared(scores)

    def _show(self) -> None:
        size = self.config.trainer.eval_size(self.config.stages[-1])
        self.hooks.ended(self.evaluator.pictures(self.learner.evaluated_model, size, self._by_class))
        if self._by_class is not None:
            self.hooks.classes_evaluated(self.task.class_rows(self._by_class))

    def fit(self, span: StageSpan, last_stage: int | None = None) -> Decision | None:
        """Train one stage from the state's cursor to its end, or to the decision with which its loop is left."""
        self.learner.regularize(span.stage)
        self.learner.keep_horizon(span.stage)
        release(self.device)
        if (decision := self._while_paused({})) is not None:
            return decision
        if (note := self.progress.note_micro_batch(span.index, self._micro_batch(span))) and self.rank == 0:
            self.hooks.noted(note)
        meter = Meter(self.device, self.progress.samples_per_epoch)
        first = True
        for batch in meter.waiting(self.feed.batches(span, self.state.cursor)):
            with self._memory_of(span), self.transfer.on_device(batch) as there:
                inputs = StepInputs(there, span.stage, self.config, self.task, self.device)
                if first:
                    self.state.stage_results[span.index].setdefault("began_s", time.time())
                    self.hooks.stage_started(span, inputs.part(slice(self._micro_batch(span)))[0])
                first = False
                meter.add(self._step(span, inputs))
            self.hooks.heartbeat()
            self.hooks.stepped(batch, self.state.cursor)
            self.progress.stepped(span.stage.batch_size)
            self.profiler.step()
            self._make_next_ready(span, last_stage)
            decision = self._after_step(span, meter)
            if decision is not None:
                return decision
        return None

    def _step(self, span: StageSpan, inputs: StepInputs) -> dict[str, Tensor]:
        seed, rate = step_seed(self.config.seed, self.state.cursor, self.rank), self.progress.learning_rate
        return self.learner.step_in_parts(inputs.parts(self._micro_batch(span)), len(inputs), seed=seed, lr=rate)

    @contextmanager
    def _memory_of(self, span: StageSpan) -> Iterator[None]:
        """Say of which stage, and of how many samples, a step was that ran out of memory."""
        try:
            with allocation_errors():
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(span.index, self._micro_batch(span)) from error

    def _micro_batch(self, span: StageSpan) -> int:
        return micro_batch(span.stage.batch_size // self.world_size, self.progress.micro_limit_of(span.index))

    # What follows a step ---------------------------------------------------------------------------------------------

    def _after_step(self, span: StageSpan, meter: Meter) -> Decision | None:
        """Log, evaluate, decide and save where it is time; return the decision with which the stage's loop is left."""
        now, epoch = self.state.cursor, self.progress.samples_per_epoch
        before = now - span.stage.batch_size
        ended = now >= span.stop
        evaluate = ended or crossed(self.config.trainer.eval_every_epochs * epoch, before, now)
        save = ended or crossed(self.config.checkpoint.every_epochs * epoch, before, now)
        # Checkpoints lie on log steps only, so a resumed run's log intervals are those of the run that was killed.
        if not (evaluate or save or self.state.step % int(self.progress.setting("log_every")) == 0):
            return None
        # Whether it is saved or not: a resumed run's numbers are then rounded as those of a run that wasn't killed.
        self.learner.average_statistics()
        metrics = self._log_row(span, meter)
        scores = self._evaluated(span) if evaluate else {}
        decisions = self._decide(metrics | scores)
        if self.config.trainer.reestimate_bn and self.progress.span is None:  # a run that is extended keeps its own
            self._reestimate(span)
            scores = self._evaluated(span)
        if scores:  # those that are saved: of two evaluations of a step the first would stay on record
            self._tell(scores | {"val/epoch": self.state.cursor / self.progress.samples_per_epoch})
        if save or decisions:
            self._save()
        leaves = leaving(decisions)
        if not isinstance(leaves, Stop | NewGroup):
            leaves = self._while_paused(metrics | scores) or leaves
        if len(self.state.stage_starts) > span.index + 1:
            self.hooks.stage_ended(span, dict(self.state.stage_results[span.index]))
        meter.restart()
        return leaves

    def _while_paused(self, metrics: dict[str, float]) -> Decision | None:
        """Wait while an operator has the run wait, with all ranks at the same step."""
        leaves: Decision | None = None
        while self.progress.paused and not isinstance(leaves, Stop | NewGroup):
            if self.rank == 0:
                time.sleep(PAUSE_POLL_S)
            decisions = self._decide(metrics)  # a broadcast each time, so that no collective waits for too long
            if decisions:
                self._save()
            leaves = leaving(decisions) or leaves
        return leaves

    def _log_row(self, span: StageSpan, meter: Meter) -> dict[str, float]:
        """Materialize what the meter has gathered: the one host synchronization of a log interval."""
        self.hooks.reported(self.state.cursor, meter.wait_share)
        row, damaged = meter.row(span.stage.batch_size, self.state.cursor)
        self._check_damaged(damaged, meter)
        if not math.isfinite(row["train/loss"]):
            raise TrainingError(
                f"the loss is {row['train/loss']} at cursor {self.state.cursor} (stage {span.index + 1}): "
                f"lower optimizer.lr ({self.config.optimizer.lr}) or lengthen its warm-up"
            )
        self.progress.logged(row, meter.steps)
        row["train/lr"] = self.progress.learning_rate
        row["train/epoch"] = self.state.cursor / self.progress.samples_per_epoch
        row |= {f"stage/{name}": getattr(span.stage, name) for name in STAGE_METRICS}
        row["stage/stochastic_depth"] = self.config.stochastic_depth_of(span.stage)
        row["stage/crop_area_min"], row["stage/crop_area_max"] = span.stage.crop_area or self.config.data.crop_area
        row["stage/num_workers"] = self.world_size
        row["stage/micro_batch"] = self._micro_batch(span)
        row["stage/index"] = span.index + 1
        self._tell(row)
        return row

    def _check_damaged(self, by_epoch: dict[int, int], meter: Meter) -> None:
        """End the run, on all ranks at once, where too many of an epoch's samples are corrupt."""
        self._damaged = (self._damaged + [sample.message for sample in meter.damaged])[-MAX_MESSAGES:]
        count, samples = self.progress.count_damaged(by_epoch), self.progress.samples_per_epoch
        share = self.config.data.max_damaged
        if is_too_much(count, samples, share):
            messages = [message for part in gathered(self._damaged) for message in part]
            raise corruption_error(count, samples, share, f"an epoch of {self.config.data.train}", messages)

    def _evaluated(self, span: StageSpan) -> dict[str, float]:
        started = time.perf_counter()
        size = self.config.trainer.eval_size(span.stage)
        metrics = {f"val/{name}": value for name, value in self.evaluate(size).items()}
        if self.config.adaptive.closed_loop and span.index < len(self.config.stages) - 1:
            metrics[PLAIN_TRAINING_LOSS] = self.evaluator.plain_training_loss(self.learner.evaluated_model, size)
        self.progress.evaluated(span.index, metrics, time.perf_counter() - started, self.world_size)
        log.info("evaluated", extra={"cursor": self.state.cursor, "metrics": metrics})
        return metrics

    def _reestimate(self, span: StageSpan) -> None:
        """Estimate BatchNorm's statistics again for the evaluations' size and view.

        Of the weights as well as of their moving average: they are compared at the end, and both are saved.
        """
        for model in self.learner.models:
            self.evaluator.reestimate(model, self.config.trainer.eval_size(span.stage))

    def _tell(self, metrics: dict[str, float]) -> None:
        if self.rank == 0:
            self.hooks.logged(metrics, self.state.cursor)

    def _decide(self, metrics: dict[str, float]) -> tuple[Decision, ...]:
        """Ask on rank 0, tell all, carry out: every rank switches at the same step."""
        decisions: tuple[Decision, ...] = ()
        if self.rank == 0:
            decisions = self.hooks.decide(self.progress.report(metrics, self.world_size))
            limit_s = self.config.checkpoint.every_s
            overdue = limit_s and time.monotonic() - self._last_save_s > limit_s
            if not decisions and overdue and not self.progress.paused:
                decisions = (Checkpoint(),)
        decisions = agreed(decisions, self.device)
        self.hooks.heartbeat()
        span = self.progress.span
        assert span is not None
        if self.state.cursor >= span.stop and not any(isinstance(one, NextStage | ExtendStage) for one in decisions):
            decisions = in_order((*decisions, NextStage(reason="its length is reached")))
        for decision in decisions:
            self.progress.carry_out(decision)
        if decisions and self.rank == 0:
            self.hooks.decided(self.progress.records)
        return decisions

    def evaluate(self, image_size: int) -> dict[str, float]:
        """Evaluate the moving average (or the model, if there is none) on every validation sample once."""
        metrics, self._by_class = self.evaluator.scores(self.learner.evaluated_model, image_size)
        self._evaluated_at = self.state.cursor
        return metrics

    # State -----------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._last_save_s = time.monotonic()
        self.hooks.save(self.snapshot)

    def snapshot(self) -> Snapshot:
        """Copy the whole state to host memory."""
        return Snapshot(
            state=TrainState(**self.state.to_dict()),
            **self.learner.to_host(),
            metadata=replace(self.metadata, taken_s=time.time()),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot says.

        Raises:
            CheckpointError: the snapshot is of another model or optimizer.
        """
        self.learner.restore(snapshot)
        self.progress.restore(snapshot.state)

    # Small parts -----------------------------------------------------------------------------------------------------

    def _make_next_ready(self, span: StageSpan, last_stage: int | None) -> None:
        last = len(self.config.stages) - 1 if last_stage is None else last_stage
        known = span.index < last and not self.config.adaptive.closed_loop
        self.feed.make_ready(span, self.state.cursor, self.progress.schedule.spans[span.index + 1] if known else None)

"""The training loop: plain PyTorch, with no cluster, storage or tracking in it. Those are reached through hooks.

Read `Trainer.run` for the run, `Trainer.fit` for a stage, `Learner.step` for a step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datasets.loader import Batch, build_loader
from datasets.mixing import mix
from model.factory import set_dropout
from pipeline.checkpoint import Snapshot
from pipeline.config import TrainConfig
from pipeline.evaluation import evaluate, first_batch, normalized
from pipeline.hooks import TrainHooks
from pipeline.learner import Learner, step_seed
from pipeline.learning_rate import learning_rate
from pipeline.meter import Meter
from pipeline.policy import Decision, Progress
from pipeline.stages import StageSpan, TrainingSchedule, TrainingStage
from pipeline.state import TrainState
from pipeline.task import Task

log = logging.getLogger(__name__)

STAGE_METRICS = ("image_size", "batch_size", "randaugment_magnitude", "mixup_alpha", "cutmix_alpha", "dropout")
"""Fields of a stage that are logged beside its metrics, so that charts show where a stage begins."""


class TrainingError(ValueError):
    """Training can't go on, and trying again would fail again."""


def crossed(interval: float, before: int, after: int) -> bool:
    """Is it time? True if a multiple of `interval` lies in (before, after]; never for interval 0."""
    return interval > 0 and math.floor(after / interval) > math.floor(before / interval)


class Trainer:
    """One rank of a run: what learns, and the loop over stages."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        task: Task,
        samples_per_epoch: int,
        hooks: TrainHooks,
        facts: dict[str, Any],
        device: torch.device | None = None,
    ) -> None:
        self.config, self.task, self.hooks, self.facts = config, task, hooks, facts
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = device or torch.device("cpu")
        self.schedule = TrainingSchedule(config.stages)
        self.samples_per_epoch = samples_per_epoch
        self.total_samples = self.schedule.total_samples(samples_per_epoch)
        self.state = TrainState()
        self.learner = Learner(config, model, task, self.device)
        self._last_save_s = time.monotonic()

    # The run ---------------------------------------------------------------------------------------------------------

    def run(self, last_stage: int | None = None) -> Decision:
        """Train from the state's cursor to the end of `last_stage` (default: of the schedule).

        Returns STOP if an operator stopped the run, NEW_GROUP if other workers are to go on with it, else NEXT_STAGE:
        the stages asked for are done.
        """
        while (span := self._span()) is not None and (last_stage is None or span.index <= last_stage):
            decision = self.fit(span)
            if decision in (Decision.STOP, Decision.NEW_GROUP):
                return decision
        if self.rank == 0 and self._span() is None:
            self._show()
        return Decision.NEXT_STAGE

    def _show(self) -> None:
        try:
            self.hooks.ended(self.picture)
        except Exception as error:  # the last checkpoint is written: a picture is no reason for a run to have failed
            log.warning("the run is done, but the picture of its predictions could not be made: %s", error)

    def fit(self, span: StageSpan) -> Decision:
        """Train one stage from the state's cursor to the stage's end, or to the decision that ends it early."""
        set_dropout(self.learner.model, span.stage.dropout)
        meter = Meter(self.device)
        first = True
        for batch in meter.waiting(self._batches(span)):
            images, targets = self._inputs(batch, span.stage)
            if first:
                self.state.stage_results[span.index].setdefault("began_s", time.time())
                if self.rank == 0:
                    self.hooks.stage_started(span, images)
            first = False
            seed = step_seed(self.config.seed, self.state.cursor, self.rank)
            meter.add(self.learner.step(images, targets, seed=seed, lr=self.learning_rate))
            self.hooks.stepped(batch, self.state.cursor)
            self.state.cursor += span.stage.batch_size
            self.state.step += 1
            decision = self._after_step(span, meter)
            if decision in (Decision.NEXT_STAGE, Decision.NEW_GROUP, Decision.STOP):
                return decision
        return Decision.NEXT_STAGE

    @property
    def learning_rate(self) -> float:
        """The rate at the state's cursor."""
        return learning_rate(
            self.config.optimizer,
            cursor=self.state.cursor,
            samples_per_epoch=self.samples_per_epoch,
            total_samples=self.total_samples,
        )

    # What follows a step ---------------------------------------------------------------------------------------------

    def _after_step(self, span: StageSpan, meter: Meter) -> Decision:
        """Log, evaluate, decide and save where it is time."""
        now, before, epoch = self.state.cursor, self.state.cursor - span.stage.batch_size, self.samples_per_epoch
        ended = now >= span.stop
        evaluate = ended or crossed(self.config.trainer.eval_every_epochs * epoch, before, now)
        save = ended or crossed(self.config.checkpoint.every_epochs * epoch, before, now)
        # Checkpoints lie on log steps only, so a resumed run's log intervals are those of the run that was killed.
        if not (evaluate or save or self.state.step % self.config.trainer.log_every == 0):
            return Decision.CONTINUE
        metrics = self._log_row(span, meter)
        if evaluate:
            metrics = metrics | self._evaluated(span)
        decision = self._decide(span, metrics)
        if ended and decision is not Decision.STOP:
            decision = Decision.NEXT_STAGE
        if ended or decision is Decision.NEXT_STAGE:  # a stop at a stage's end ends the stage too
            self.state.stage_results[span.index]["ended_s"] = time.time()
            self.state.stage_starts.append(now)
            self.state.stage_results.append({})
        if save or decision is not Decision.CONTINUE:
            self._save()
        if len(self.state.stage_starts) > span.index + 1:
            self.hooks.stage_ended(span, dict(self.state.stage_results[span.index]))
        meter.restart()
        return decision

    def _log_row(self, span: StageSpan, meter: Meter) -> dict[str, float]:
        """Materialize what the meter has gathered: the one host synchronization of a log interval."""
        row = meter.row(span.stage.batch_size)
        if not math.isfinite(row["train/loss"]):
            raise TrainingError(
                f"the loss is {row['train/loss']} at cursor {self.state.cursor} (stage {span.index + 1}): "
                f"lower optimizer.lr ({self.config.optimizer.lr}) or lengthen its warm-up"
            )
        result = self.state.stage_results[span.index]
        result["train_s"] = result.get("train_s", 0.0) + row.pop("seconds")
        result["samples"] = result.get("samples", 0) + row.pop("samples")
        row["train/lr"] = self.learning_rate
        row["train/epoch"] = self.state.cursor / self.samples_per_epoch
        row |= {f"stage/{name}": getattr(span.stage, name) for name in STAGE_METRICS}
        row["stage/num_workers"] = self.world_size
        row["stage/index"] = span.index + 1
        self._tell(row)
        return row

    def _evaluated(self, span: StageSpan) -> dict[str, float]:
        started = time.perf_counter()
        metrics = {f"val/{name}": value for name, value in self.evaluate(self.eval_size(span.stage)).items()}
        result = self.state.stage_results[span.index]
        result["eval_s"] = result.get("eval_s", 0.0) + time.perf_counter() - started
        result |= metrics
        self.state.evaluation = {"cursor": self.state.cursor, **metrics}
        self._tell(metrics | {"val/epoch": self.state.cursor / self.samples_per_epoch})
        return metrics

    def _tell(self, metrics: dict[str, float]) -> None:
        if self.rank == 0:
            self.hooks.logged(metrics, self.state.cursor)

    def _decide(self, span: StageSpan, metrics: dict[str, float]) -> Decision:
        """Ask on rank 0, tell all: every rank switches at the same step."""
        decisions = list(Decision)
        choice = torch.zeros(1, dtype=torch.int64, device=self.device)
        if self.rank == 0:
            decision = self.hooks.decide(self._progress(span, metrics))
            limit_s = self.config.checkpoint.every_s
            if decision is Decision.CONTINUE and limit_s and time.monotonic() - self._last_save_s > limit_s:
                decision = Decision.CHECKPOINT
            choice.fill_(decisions.index(decision))
        if self.world_size > 1:
            dist.broadcast(choice, src=0)
        return self._record(decisions[int(choice.item())], span)

    def _record(self, decision: Decision, span: StageSpan) -> Decision:
        if decision in (Decision.NEXT_STAGE, Decision.STOP):
            entry = {"cursor": self.state.cursor, "stage": span.index, "decision": decision.value}
            self.state.decisions.append(entry)
        return decision

    def _progress(self, span: StageSpan, metrics: dict[str, float]) -> Progress:
        return Progress(
            cursor=self.state.cursor,
            stage=span.index,
            stage_start=span.start,
            stage_stop=span.stop,
            total=list(self.schedule.spans(self.samples_per_epoch, tuple(self.state.stage_starts)))[-1].stop,
            samples_per_epoch=self.samples_per_epoch,
            num_workers=self.world_size,
            metrics=metrics,
            stage_results=tuple(self.state.stage_results),
        )

    # Evaluation ------------------------------------------------------------------------------------------------------

    def eval_size(self, stage: TrainingStage) -> int:
        """Image size at which a stage is evaluated, in pixels."""
        return round(stage.image_size * self.config.trainer.eval_scale)

    def picture(self) -> bytes:
        """Return a PNG of the first validation images with truth and prediction, made on this rank alone."""
        size = self.eval_size(self.config.stages[-1])
        return self.task.picture(
            *first_batch(
                self.learner.evaluated_model, self.config.data, self.config.trainer, image_size=size, device=self.device
            )
        )

    def evaluate(self, image_size: int) -> dict[str, float]:
        """Evaluate the moving average (or the model, if there is none) on every validation sample once."""
        return evaluate(
            self.learner.evaluated_model,
            self.task,
            self.config.data,
            self.config.trainer,
            image_size=image_size,
            device=self.device,
        )

    # State -----------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._last_save_s = time.monotonic()
        self.hooks.save(self.snapshot)

    def snapshot(self) -> Snapshot:
        """Copy the whole state to host memory."""
        return Snapshot(
            state=TrainState(**self.state.to_dict()),
            **self.learner.to_host(),
            facts=self.facts,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot says.

        Raises:
            CheckpointError: the snapshot is of another model or optimizer.
        """
        self.learner.restore(snapshot)
        self.state = TrainState(**snapshot.state.to_dict())

    # Small parts -----------------------------------------------------------------------------------------------------

    def _span(self) -> StageSpan | None:
        return self.schedule.lookup(self.state.cursor, self.samples_per_epoch, tuple(self.state.stage_starts))

    def _batches(self, span: StageSpan) -> Iterable[Batch]:
        stage = span.stage
        return build_loader(
            self.config.data,
            image_size=stage.image_size,
            batch_size=stage.batch_size,
            magnitude=stage.randaugment_magnitude,
            seed=self.config.seed,
            cursor=self.state.cursor,
            stop=span.stop,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _inputs(self, batch: Batch, stage: TrainingStage) -> tuple[Tensor, Tensor]:
        """Return normalized, mixed images float [B, 3, H, W] and soft targets, on the device."""
        return mix(
            normalized(batch.images, self.config.trainer, self.device),
            self.task.targets(batch, self.device),
            mixup_alpha=stage.mixup_alpha,
            cutmix_alpha=stage.cutmix_alpha,
            seed=self.config.seed,
            stream_index=batch.stream_index,
            num_lanes_of_rank=self.config.data.num_lanes // self.world_size,
        )

"""The progress of a run: its state, the schedule that follows from the decisions, and the learning rate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.schedule.adaptive import PLAIN_TRAINING_LOSS
from pipeline.schedule.decisions import LIVE_FIELDS, Checkpoint, Decision, DecisionRecord, NextStage, paused, records_of
from pipeline.schedule.policy import Progress
from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import StageSpan
from pipeline.training.learning_rate import stage_learning_rate
from pipeline.training.memory import halved

SHOWN_DECISIONS = 20
"""Recorded decisions that the controller is told of for its status."""


class TrainingProgress:
    """The state of a run and what follows from it. Every rank has one, and all are equal."""

    def __init__(self, config: TrainConfig, samples_per_epoch: int) -> None:
        self.config, self.samples_per_epoch = config, samples_per_epoch
        self.restore(TrainState())

    def restore(self, state: TrainState) -> None:
        """Go on from a copy of `state`."""
        self.state = TrainState(**state.to_dict())
        self._look_ahead()

    @property
    def stage(self) -> int:
        """Index of the current stage; the number of stages when the run is over."""
        return len(self.state.stage_starts) - 1

    @property
    def span(self) -> StageSpan | None:
        """The current stage, or None when the run is over."""
        return self.schedule.spans[self.stage] if self.stage < len(self.schedule.spans) else None

    @property
    def paused(self) -> bool:
        """Whether an operator has the run wait."""
        return self.span is not None and paused(self.records)

    def setting(self, name: str) -> float:
        """Return the value of a live field for the step at the cursor."""
        defaults = {
            "lr_scale": 1.0,
            "patience": self.config.adaptive.patience,
            "log_every": self.config.trainer.log_every,
        }
        return self.schedule.setting(name, self.state.cursor, defaults[name])

    @property
    def learning_rate(self) -> float:
        """The rate of the step at the cursor."""
        assert self.span is not None
        rate = stage_learning_rate(
            self.config.optimizer,
            self.span.stage,
            cursor=self.schedule.position(self.state.cursor),
            samples_per_epoch=self.samples_per_epoch,
            total_samples=self.schedule.planned_samples,
        )
        return rate * self.setting("lr_scale")

    def micro_limit_of(self, stage: int) -> int:
        """Most samples of a forward pass on one worker in a stage; 0: all."""
        limits = self.state.micro_limits
        return limits[stage] if limits else self.config.trainer.micro_batch_size

    def lower_limits(self, out_of_memory: Sequence[tuple[int, int]], num_workers: int) -> None:
        """Use smaller micro-batches after stages ran out of memory with so many samples: (stage, samples) each.

        Raises:
            MemoryLimitError: it was one sample.
        """
        whole = [stage.batch_size // num_workers for stage in self.config.stages]
        for stage, samples in out_of_memory:
            limits = self.state.micro_limits or [self.config.trainer.micro_batch_size or count for count in whole]
            if limits[stage] >= samples:
                self.state.micro_limits = halved(limits, stage, samples)

    def note_micro_batch(self, stage: int, micro: int) -> str:
        """Record a stage's micro-batch, over which BatchNorm normalizes; return a line if it began with another."""
        result = self.state.stage_results[stage]
        before = result.get("micro_batch", micro)
        result["micro_batch"] = micro
        if micro == before:
            return ""
        return (
            f"stage {stage + 1} goes on in passes of {micro} samples instead of {before:g} on each worker: "
            "BatchNorm normalizes over other batches than before"
        )

    def stepped(self, samples: int) -> None:
        """An optimizer step has consumed so many samples."""
        self.state.cursor += samples
        self.state.step += 1

    def carry_out(self, decision: Decision) -> None:
        """Record a decision and let the schedule follow from it."""
        if isinstance(decision, Checkpoint) and not decision.asked_by:
            return  # those of the clock are no history
        self.state.decisions.append(DecisionRecord(self.state.cursor, self.stage, decision).entry())
        if isinstance(decision, NextStage):
            self.state.stage_results[self.stage]["ended_s"] = time.time()
            self.state.stage_starts.append(self.state.cursor)
            self.state.stage_results.append({})
        self._look_ahead()

    def logged(self, row: dict[str, float], steps: int) -> None:
        """Add a log row to the stage's result; takes `seconds`, `samples`, `cpu_s` and `peak_bytes` out of it."""
        result = self.state.stage_results[self.stage]
        result["train_s"] = result.get("train_s", 0.0) + row.pop("seconds")
        result["samples"] = result.get("samples", 0) + row.pop("samples")
        result["cpu_s"] = result.get("cpu_s", 0.0) + row.pop("cpu_s")
        result["peak_bytes"] = max(result.get("peak_bytes", 0), row.pop("peak_bytes"))
        since = self.state.since_evaluation
        since["steps"] = since.get("steps", 0) + steps
        since["loss"] = since.get("loss", 0.0) + row["train/loss"] * steps

    def count_damaged(self, by_epoch: Mapping[int, int]) -> int:
        """Add a log row's corrupt samples; return the most that any of its epochs has so far."""
        most = 0
        for epoch, count in sorted(by_epoch.items()):
            before = self.state.damaged[1] if epoch == self.state.damaged[0] else 0
            self.state.damaged = [epoch, before + count]
            most = max(most, before + count)
        return most

    def evaluated(self, stage: int, metrics: dict[str, float], seconds: float, num_workers: int) -> None:
        """Add an evaluation to a stage's result and to what the rules look at; a second one at a cursor replaces it."""
        result = self.state.stage_results[stage]
        result["eval_s"] = result.get("eval_s", 0.0) + seconds
        result |= metrics
        self.state.evaluation = {"cursor": self.state.cursor, **metrics}
        since, self.state.since_evaluation = self.state.since_evaluation, {}
        row: dict[str, float] = {"cursor": self.state.cursor, "stage": stage, "workers": num_workers}
        before = self.state.evaluations
        if before and before[-1]["cursor"] == self.state.cursor:
            row = before.pop() | row
        if since:
            row["train/loss"] = since["loss"] / since["steps"]
        kept = {"val/loss", PLAIN_TRAINING_LOSS, self.config.adaptive.metric, self.config.checkpoint.best_metric}
        row |= {name: metrics[name] for name in kept & metrics.keys()}
        for name in ("train_s", "cpu_s", "eval_s"):
            row[name] = sum(one.get(name, 0.0) for one in self.state.stage_results)
        self.state.evaluations.append(row)

    def report(self, metrics: dict[str, float], num_workers: int) -> Progress:
        """Return what the controller is told at a decision point."""
        return Progress(
            cursor=self.state.cursor,
            stage=self.stage,
            spans=self.schedule.spans,
            samples_per_epoch=self.samples_per_epoch,
            num_workers=num_workers,
            metrics=metrics,
            stage_results=tuple(self.state.stage_results),
            evaluations=tuple(row for row in self.state.evaluations if row["stage"] == self.stage),
            settings={name: self.setting(name) for name in LIVE_FIELDS},
            paused=self.paused,
            num_replayed=sum(record.decision.replayed for record in self.records),
            decisions=tuple(self.state.decisions[-SHOWN_DECISIONS:]),
        )

    def _look_ahead(self) -> None:
        self.records = records_of(self.state.decisions)
        self.schedule = TrainingSchedule(
            self.config.stages, self.samples_per_epoch, self.records, self.config.adaptive.max_epochs
        )

"""A stand-in for a worker group: it steps and asks for decisions as the trainer does, with faults at chosen steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from datasets.config import DataConfig
from model.config import ModelConfig
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.control.controller import StageController
from pipeline.control.plan import RunPlan
from pipeline.control.run_status import RunIdentity, RunStatus
from pipeline.schedule.adaptive import PLAIN_TRAINING_LOSS
from pipeline.schedule.decisions import Decision, ExtendStage, NewGroup, NextStage, Stop, leaving
from pipeline.schedule.stages import AdaptiveConfig, Segment, TrainingStage
from pipeline.training.progress import TrainingProgress
from pipeline.training_config import OptimizerConfig

EPOCH = 120
BATCH = 24


class KilledError(Exception):
    """A worker is lost here."""


def stage(num_workers: int = 0, **changes: object) -> TrainingStage:
    values: dict[str, object] = {"image_size": 32, "epochs": 1, "batch_size": BATCH, "num_workers": num_workers}
    return TrainingStage(**(values | changes))  # type: ignore[arg-type]


def config_of(stages: Sequence[TrainingStage], rules: AdaptiveConfig | None = None) -> TrainConfig:
    return TrainConfig(
        name="fake",
        stages=tuple(stages),
        adaptive=rules or AdaptiveConfig(),
        data=DataConfig(),
        model=ModelConfig(name="efficientnet_v2_tiny"),
        optimizer=OptimizerConfig(optimizer="sgd", lr=1.0, schedule="cosine", warmup_epochs=0),
    )


def plan_of(*stages: TrainingStage, name: str = "run", **changes: object) -> RunPlan:
    """Return the plan of a run of two workers; `changes` are fields of it."""
    values: dict[str, object] = {"identity": RunIdentity(name=name), "num_workers": 2, "rules": AdaptiveConfig()}
    return RunPlan(stages=stages, **(values | changes))  # type: ignore[arg-type]


def no_group(segment: Segment) -> None:
    """Train nothing."""


Action = Callable[[StageController], object]


class FakeGroup:
    """Trains stages of steps that do nothing, each of them a decision point.

    Args:
        inject: by cursor, what is done right before that decision point, once: a call of the controller, or a
            `KilledError`, after which the group starts again from the newest checkpoint.
        val_loss: of an evaluation, by its cursor; one is made at every epoch's end. The training loss is 1.
        loses_checkpoints_from: checkpoints from this cursor on are not written before the group is killed.
    """

    def __init__(
        self,
        inject: dict[int, Action | KilledError] | None = None,
        *,
        val_loss: Callable[[int], float] = lambda cursor: 1.0,
        loses_checkpoints_from: int = 10**9,
    ) -> None:
        self.inject, self.val_loss, self.loses = dict(inject or {}), val_loss, loses_checkpoints_from
        self.saved = TrainState()
        self.fitted: list[Segment] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.rates: dict[int, float] = {}
        self.controller: StageController
        self.config: TrainConfig

    def run(
        self,
        stages: Sequence[TrainingStage],
        rules: AdaptiveConfig | None = None,
        *,
        name: str = "run",
        first_stage: int = 0,
        **parts: object,
    ) -> RunStatus:
        """Train stages; `parts` are arguments of the controller."""
        self.config = config_of(stages, rules)
        plan = plan_of(*stages, name=name, rules=self.config.adaptive, first_stage=first_stage)
        self.controller = StageController(plan, self, **parts)  # type: ignore[arg-type]
        return self.controller.run()

    def __call__(self, segment: Segment) -> None:
        self.fitted.append(segment)
        while True:
            try:
                self._train(segment)
                return
            except KilledError:
                self.loses = 10**9

    def _train(self, segment: Segment) -> None:
        if self.controller.join(0, "node").error:
            return
        progress = TrainingProgress(self.config, EPOCH)
        progress.restore(self.saved)
        while (span := progress.span) is not None and span.index <= segment.last:
            if not progress.paused:
                self.rates[progress.state.cursor] = progress.learning_rate
                progress.stepped(span.stage.batch_size)
            self._happens(progress)
            if progress.state.cursor % EPOCH == 0 and not progress.paused:
                progress.evaluated(
                    progress.stage, {"val/loss": self.val_loss(progress.state.cursor), "val/accuracy": 0.5}, 0.1, 2
                )
                progress.state.evaluations[-1][PLAIN_TRAINING_LOSS] = 1.0
            decisions = self.controller.decide(progress.report({}, 2)).decisions
            for decision in decisions:
                self.decisions.append((progress.state.cursor, decision))
                progress.carry_out(decision)
            if (decisions or progress.state.cursor % EPOCH == 0) and progress.state.cursor < self.loses:
                self.saved = TrainState(**progress.state.to_dict())
            if isinstance(leaving(decisions), Stop | NewGroup):
                self.controller.ended(leaving(decisions))  # type: ignore[arg-type]
                return

    def _happens(self, progress: TrainingProgress) -> None:
        action = self.inject.pop(progress.state.cursor, None)
        if isinstance(action, KilledError):
            raise action
        if action is not None:
            action(self.controller)

    @property
    def told(self) -> list[tuple[int, str]]:
        """What was decided, by cursor, without times and reasons."""
        return [(cursor, decision.words) for cursor, decision in self.decisions]


def ask(*decisions: Decision) -> Action:
    """Have an operator ask for decisions."""
    return lambda controller: [controller.ask(replace(decision, asked_by="ann@here")) for decision in decisions]


def advance() -> Action:
    return ask(NextStage())


def extend(epochs: float) -> Action:
    return ask(ExtendStage(epochs=epochs))

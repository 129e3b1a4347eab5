from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from pipeline.schedule.stages import AUTO, with_batch_sizes
from pipeline.training.class_scores import ClassRow
from pipeline.training.final_scores import FinalScores, final_scores
from pipeline.training_config import CheckpointConfig, OptimizerConfig
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.trainers import assert_same_weights, make_trainer


class Listener(Recorder):
    """Keeps the comparison, the pictures' names and the classes of the run's end."""

    scores: FinalScores | None = None
    pictures: tuple[str, ...] = ()
    classes: Sequence[ClassRow] = ()

    def ended(self, pictures: Mapping[str, bytes]) -> None:
        self.pictures = tuple(pictures)

    def classes_evaluated(self, rows: Sequence[ClassRow]) -> None:
        self.classes = rows

    def weights_compared(self, scores: FinalScores) -> None:
        self.scores = scores


def test_a_run_ends_with_both_the_weights_and_their_average_evaluated(make_config: MakeConfig) -> None:
    hooks = Listener()
    trainer = make_trainer(make_config(), hooks)
    trainer.run()
    scores, end = hooks.scores, trainer.state.cursor
    assert scores is not None
    names = {"accuracy", "balanced_accuracy", "macro_f1", "calibration_error", "loss"}
    assert {*scores.weights} == {*scores.average} == names
    assert scores.weights["loss"] != scores.average["loss"]
    last = [row for cursor, row in hooks.rows if cursor == end and "val/loss" in row][-1]
    assert scores.average == {name: last[f"val/{name}"] for name in names}  # what the run is judged by
    assert [row for _, row in hooks.rows if "final/ema/accuracy" in row] == [scores.rows]
    assert scores.rows["final/weights/loss"] == scores.weights["loss"]
    again = Listener()
    resumed = make_trainer(make_config(), again)
    resumed.restore(hooks.snapshots[-1])  # killed between its last checkpoint and this
    resumed.run()
    assert again.scores is not None
    assert again.scores.rows == scores.rows
    assert again.pictures == hooks.pictures == ("predictions.png", "confusion-matrix.png")
    assert again.classes == hooks.classes != ()


def test_without_an_average_or_before_the_end_nothing_is_compared(make_config: MakeConfig) -> None:
    base, hooks = make_config(), Listener()
    make_trainer(base, hooks).run(last_stage=0)
    assert hooks.scores is None
    make_trainer(replace(base, optimizer=OptimizerConfig(ema_decay=0.0, warmup_epochs=1, lr=1e-3)), hooks).run()
    assert hooks.scores is None


@pytest.mark.parametrize(
    ("metric", "best_is", "better"),
    [
        ("val/accuracy", "highest", "weights"),
        ("val/loss", "lowest", "ema"),
        ("", "highest", "ema"),  # by the loss
        ("val/macro_f1", "highest", "ema"),  # equal
    ],
)
def test_the_better_one_is_named_by_the_runs_own_metric(metric: str, best_is: str, better: str) -> None:
    weights = {"accuracy": 0.8, "loss": 0.7, "macro_f1": 0.5}
    average = {"accuracy": 0.7, "loss": 0.6, "macro_f1": 0.5}
    config = CheckpointConfig(best_metric=metric, best_is=best_is)  # type: ignore[arg-type]
    scores = final_scores(weights, average, config)
    assert scores.better == better
    assert ("--no-ema" in scores.line) == (better == "weights")


def test_growing_batches_resume_bit_for_bit_with_their_average(make_config: MakeConfig) -> None:
    base = make_config()
    first, last = base.stages
    stages = with_batch_sizes((replace(first, batch_size=AUTO), last), base.adaptive, multiple=12)
    assert stages[0].batch_size > stages[1].batch_size
    config = replace(base, stages=stages)
    whole, resumed = Recorder(), Recorder()
    make_trainer(config, whole).run()
    other = make_trainer(config, resumed)
    other.restore(whole.snapshots[0])
    other.run()
    assert_same_weights(whole.snapshots[-1], resumed.snapshots[-1])

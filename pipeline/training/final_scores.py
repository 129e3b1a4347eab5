"""The end of a run: which is better, its weights or their moving average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.training_config import CheckpointConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalScores:
    """Metrics of the last evaluation by name, without `val/`: of the weights, and of their moving average."""

    weights: Mapping[str, float]
    average: Mapping[str, float]
    metric: str
    """By which they are compared."""
    highest: bool
    """Whether its highest value is the best, or the lowest."""

    @property
    def rows(self) -> dict[str, float]:
        """Return all of them by the names that they are recorded by."""
        both = {"weights": self.weights, "ema": self.average}
        return {f"final/{kind}/{name}": value for kind, values in both.items() for name, value in values.items()}

    @property
    def better(self) -> str:
        """Return `weights` or `ema`; of equals `ema`, which is what runs evaluate and what `jobs.evaluate` takes."""
        gain = self.weights[self.metric] - self.average[self.metric]
        return "weights" if (gain if self.highest else -gain) > 0 else "ema"

    @property
    def line(self) -> str:
        """Return one line for the user."""
        values = (
            f"{self.metric} {self.average[self.metric]:.4f}, of the weights themselves {self.weights[self.metric]:.4f}"
        )
        cure = "; take the weights with --no-ema of jobs.evaluate, export and predict"
        return f"moving average of the weights: {values}" + (cure if self.better == "weights" else "")


def final_scores(weights: Mapping[str, float], average: Mapping[str, float], config: CheckpointConfig) -> FinalScores:
    """Compare by `checkpoint.best_metric`, or by the loss where it names none."""
    metric, highest = config.best_metric.removeprefix("val/"), config.best_is == "highest"
    if metric not in weights:
        metric, highest = "loss", False
    return FinalScores(weights=weights, average=average, metric=metric, highest=highest)

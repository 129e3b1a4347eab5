"""What an evaluation of a regression measures, in one metric. Importing it takes seconds (torchmetrics)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.device import constant


class TargetScores(Metric):
    """Mean absolute error, root of the mean squared error and R2 of each target, and their means over the targets.

    Sums in float64 that are added over the workers. R2 is 1 - squared error / squared distance from the mean of these
    very samples. Where these are all the same it is 0, or 1 of estimates without an error, as scikit-learn's `r2_score`
    has it: a NaN would be no JSON, and rank nowhere.
    """

    full_state_update = False

    count: Tensor
    sums: Tensor

    def __init__(self, names: Sequence[str], mean: Sequence[float], std: Sequence[float], *, by_class: bool) -> None:
        """Make an empty metric; `mean` and `std` are about those of the targets, to keep the sums small."""
        super().__init__()
        self._names, self._by_class = tuple(names), by_class
        self._mean, self._std = tuple(mean), tuple(std)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(4, len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, truth: Tensor) -> None:
        """Add estimates [B, N] and the truth [B, N], both in the targets' units."""
        errors = values.double() - truth.double()
        mean, std = (constant(part, truth.device, torch.float64) for part in (self._mean, self._std))
        away = (truth.double() - mean) / std
        self.sums += torch.stack([errors.abs(), errors**2, away, away**2]).sum(1)
        self.count += len(values)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name; of several targets those of each too, as `mae_NAME`."""
        absolute, squared, away, away_squared = self.sums
        mae, rmse = absolute / self.count, (squared / self.count).sqrt()
        std = constant(self._std, away.device, torch.float64)
        spread = (away_squared - away**2 / self.count).clamp_min(0) * std**2
        varies = spread > 1e-9 * self.count * std**2
        r2 = torch.where(varies, 1 - squared / spread, (squared == 0).double())
        scores = {"mae": mae, "rmse": rmse, "r2": r2}
        found = {name: values.mean() for name, values in scores.items()}
        if len(self._names) > 1:
            found |= {
                f"{score}_{name}": values[index]
                for score, values in scores.items()
                for index, name in enumerate(self._names)
            }
        if self._by_class:
            found["by_class"] = torch.stack([self.count.expand(len(mae)).double(), mae, rmse, r2], 1)
        return found

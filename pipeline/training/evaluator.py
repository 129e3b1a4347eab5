"""What a run measures of its models: on the validation set, and on training samples seen as validation's are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from datasets.shards.manifest import DatasetManifest
from pipeline.config import TrainConfig
from pipeline.training.evaluation import evaluate, first_batch, plain_training_loss
from pipeline.training.figures import confusion_picture
from pipeline.training.reestimation import reestimate_from_data
from pipeline.training.task import Task


class Evaluator:
    """The evaluations of a run: always of the same data, on the same device, with the same precision.

    All but the pictures are made by all ranks together.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        *,
        train: DatasetManifest,
        val: DatasetManifest,
        device: torch.device,
        heartbeat: Callable[[], None],
    ) -> None:
        self.config, self.task, self.device, self.heartbeat = config, task, device, heartbeat
        self._train, self._val = train, val

    def scores(self, model: nn.Module, image_size: int) -> tuple[dict[str, float], Tensor | None]:
        """Return what `evaluation.evaluate` does: metrics of every validation sample, and the tensor by class."""
        return evaluate(
            model,
            self.task,
            self.config.data,
            self.config.trainer,
            image_size=image_size,
            device=self.device,
            heartbeat=self.heartbeat,
            manifest=self._val,
        )

    def plain_training_loss(self, model: nn.Module, image_size: int) -> float:
        """Return what the closed loop compares the validation loss with."""
        return plain_training_loss(
            model,
            self.task,
            self.config.data,
            self.config.trainer,
            samples=min(self._val.num_samples, self.config.adaptive.gap_samples),
            image_size=image_size,
            seed=self.config.seed,
            device=self.device,
            heartbeat=self.heartbeat,
            manifest=self._train,
        )

    def reestimate(self, model: nn.Module, image_size: int) -> None:
        """Estimate BatchNorm's statistics again from `trainer.reestimate_bn` training samples."""
        reestimate_from_data(
            model,
            self.config.data,
            self.config.trainer,
            samples=self.config.trainer.reestimate_bn,
            image_size=image_size,
            seed=self.config.seed,
            device=self.device,
            heartbeat=self.heartbeat,
            manifest=self._train,
        )

    def pictures(self, model: nn.Module, image_size: int, by_class: Tensor | None) -> dict[str, bytes]:
        """Return PNGs by name, made on this rank alone: the first validation images with truth and prediction, and
        the confusion matrix, if there is one.
        """
        batch, logits = first_batch(
            model,
            self.config.data,
            self.config.trainer,
            image_size=image_size,
            device=self.device,
            manifest=self._val,
        )
        pictures = {"predictions.png": self.task.picture(batch, logits)}
        if by_class is not None and self.task.exclusive:
            pictures["confusion-matrix.png"] = confusion_picture(by_class, self.task.classes)
        return pictures

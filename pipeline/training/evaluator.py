"""What a run measures of its models: on the validation set, and on training samples seen as validation's are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from datasets.config import DataConfig
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader, build_plain_loader
from datasets.shards.manifest import DatasetManifest
from pipeline.config import TrainConfig
from pipeline.training.device import counting
from pipeline.training.distributed import rank_and_size
from pipeline.training.evaluation import logits_of, predicted
from pipeline.training.figures import confusion_picture
from pipeline.training.reestimation import reestimate_from_data
from pipeline.training.task import Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

MAX_CONFUSED = 1000
"""Classes up to which an evaluation says how each of them fares."""


class Evaluator:
    """The evaluations of a run: always of the same data, on the same device, with the same precision.

    All but the pictures are made by all ranks together. The batches are the same for any worker count, and the metrics'
    states are summed over the workers. Samples that can't be decoded are left out and said; too many of them are a
    `DataError`.
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

    @torch.inference_mode()
    def scores(self, model: nn.Module, image_size: int) -> tuple[dict[str, float], Tensor | None]:
        """Return the task's metrics over every validation sample, each once, and its tensor by class (`Task.metrics`).

        With more than `MAX_CONFUSED` classes there is none: a matrix grows with their square, and nobody could look at
        it.
        """
        rank, world_size = rank_and_size()
        batches = build_eval_loader(
            self.config.data,
            image_size=image_size,
            batch_size=self.config.trainer.eval_batch_size,
            rank=rank,
            world_size=world_size,
            manifest=self._val,
        )
        metrics = self.task.metrics(by_class=len(self.task.classes) <= MAX_CONFUSED).to(self.device)
        values = self._measured(metrics, model, batches, self.config.data)
        by_class: Tensor | None = values.pop("by_class", None)
        return {name: float(value) for name, value in values.items()}, by_class

    @torch.inference_mode()
    def plain_training_loss(self, model: nn.Module, image_size: int) -> float:
        """Return the loss of training samples measured as validation's is: its view, no augmentation, hard targets.

        The closed loop compares the validation loss with it. They are the first ones of the sample order, so of a
        mixture's datasets in the shares that training has, and the same each time.
        """
        rank, world_size = rank_and_size()
        data, samples = self.config.data, min(self._val.num_samples, self.config.adaptive.gap_samples)
        batches = build_plain_loader(
            data,
            image_size=image_size,
            batch_size=min(self.config.trainer.eval_batch_size, samples),
            samples=samples,
            seed=self.config.seed,
            rank=rank,
            world_size=world_size,
            manifest=self._train,
        )
        metrics = self.task.loss_metric().to(self.device)
        return float(self._measured(metrics, model, batches, replace(data, val=data.train))["loss"])

    def _measured(
        self, metrics: MetricCollection, model: nn.Module, batches: Iterable[Batch], data: DataConfig
    ) -> dict[str, Tensor]:
        """Return the metrics' values over this rank's batches and the other ranks'."""
        trainer = self.config.trainer
        for batch, logits in predicted(model, batches, data, trainer, device=self.device, heartbeat=self.heartbeat):
            with counting():
                self.task.update(metrics, logits, batch)
        values: dict[str, Tensor] = metrics.compute()
        return values

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
        trainer = self.config.trainer
        batches = build_eval_loader(
            self.config.data,
            image_size=image_size,
            batch_size=trainer.eval_batch_size,
            rank=0,
            world_size=1,
            manifest=self._val,
        )
        batch = next(batch for batch in batches if len(batch.labels))
        with torch.inference_mode():
            logits, _ = logits_of(model.eval(), batch.images, trainer, self.device, trainer.eval_batch_size)
        pictures = {"predictions.png": self.task.picture(batch, logits)}
        if by_class is not None and self.task.exclusive:
            pictures["confusion-matrix.png"] = confusion_picture(by_class, self.task.classes)
        return pictures

"""Loads a trained model from a checkpoint, with what is needed to use it. Needs no cluster, no data and no recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.errors import DataError
from datasets.shards.manifest import DatasetManifest
from datasets.transforms.shape import image_shape
from infra.storage.base import Storage
from model.checks import check_image_size
from model.config import ModelConfig
from model.factory import build_model
from pipeline.checkpoint.catalog import (
    BestRule,
    CheckpointError,
    best_checkpoint,
    first_readable,
    list_checkpoints,
    newest_state,
)
from pipeline.checkpoint.format import StoredWeights, read_stored_weights
from pipeline.checkpoint.recorded_config import config_from, task_config_from
from pipeline.checkpoint.resume import locate
from pipeline.checkpoint.state import TrainState
from pipeline.inference.preprocessing import Preprocessing
from pipeline.schedule.stages import MAX_IMAGE_SIZE, TrainingStage
from pipeline.task_config import RegressionConfig
from pipeline.training.evaluation import normalized
from pipeline.training.regression import Unstandardized
from pipeline.training.task import Task, build_task
from pipeline.training_config import TrainerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """A checkpoint's model, ready to be run."""

    uri: str
    """Of the checkpoint."""
    weights: str
    """`ema` (the moving average) or `model`."""
    state: TrainState
    config: dict[str, Any]
    """The run's config as it was written down."""
    model_config: ModelConfig
    model: nn.Module
    """In evaluation mode, on the CPU."""
    task: Task
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    """Lines for the user: checkpoints that were skipped, and why."""

    @property
    def kind(self) -> str:
        """What it was trained for, as `DatasetManifest.kind`."""
        return self.task.config.kind

    def trainer_config(self, **changes: Any) -> TrainerConfig:
        """Return settings for running the model: the run's normalization, the rest as asked."""
        return TrainerConfig(**self.preprocessing.normalization, **changes)

    @torch.inference_mode()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return float32 [B, K, ...] for images [B, C, H, W] as they are decoded, on the CPU."""
        inputs = normalized(torch.from_numpy(images), self.trainer_config(), torch.device("cpu"))
        logits: Tensor = self.model(inputs)
        return logits.float().numpy()


def find_run(checkpoint: str, storage: str) -> str:
    """Return the URI of what a user calls a checkpoint: a URI, a folder, or a run's name below `storage`.

    Raises:
        CheckpointError: it is a file.
    """
    if Path(checkpoint).is_file():
        raise CheckpointError(f"{checkpoint} is a file: name a run or a checkpoint by its folder")
    if "://" in checkpoint or Path(checkpoint).exists():
        return checkpoint
    return f"{storage}/{checkpoint}" if "/" not in checkpoint else checkpoint


def open_saved(uri: str, *, ema: bool = True, best: bool = False, image_size: int = 0) -> SavedModel:
    """Read the model of a checkpoint, or of a run's latest (or best) valid one.

    Args:
        uri: a checkpoint's or a run's folder, local or `s3://`.
        ema: take the moving average, where the run kept one.
        best: take the checkpoint with the run's best metric instead of the newest.
        image_size: short side of the model's input in pixels; 0: that of the evaluations in the checkpoint's stage.

    Raises:
        CheckpointError: there is none, it is corrupt, or this version can't read it.
        ValueError: the model doesn't take this image size.
    """
    if image_size > MAX_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}: it must be at most {MAX_IMAGE_SIZE:,} px")
    storage, key = locate(uri)
    if key is None:
        key, stored, notes = _readable(storage, ema=ema, best=best)
    else:
        stored, notes = read_stored_weights(storage, key, ema=ema), ()
    where = storage.location(key)
    try:
        config, classes = stored.metadata.config, stored.metadata.classes
        if not classes:
            raise KeyError("classes")
        model_config = config_from(ModelConfig, config["model"] | {"init_from": None, "frozen": False}, where)
        task = build_task(task_config_from(config["task"], where), classes, stored.state.evaluation)
        preprocessing = Preprocessing(
            image_size=image_size or _evaluated_size(config, stored.state, where),
            eval_crop=config["data"]["eval_crop"],
            pixel_mean=config["trainer"]["pixel_mean"],
            pixel_std=config["trainer"]["pixel_std"],
            pixel_type=config["data"].get("pixel_type", "rgb"),
            channels=config["data"].get("channels", 3),
            aspect_ratio=config["data"].get("aspect_ratio", 1.0),
            channel_mean=tuple(config["trainer"].get("channel_mean", ())),
            channel_std=tuple(config["trainer"].get("channel_std", ())),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{where} doesn't say {error}: it was made by another version; use that version"
        ) from None
    check_image_size(
        model_config, preprocessing.image_size, partial(image_shape, aspect_ratio=preprocessing.aspect_ratio)
    )
    return SavedModel(
        uri=where,
        weights=stored.name,
        state=stored.state,
        config=config,
        model_config=model_config,
        model=in_units(_model(model_config, task, stored.tensors, where), task),
        task=task,
        preprocessing=preprocessing,
        notes=notes,
    )


def check_classes(saved: SavedModel, manifest: DatasetManifest, url: str) -> None:
    """Refuse data whose labels mean something else than the model's outputs."""
    if manifest.kind != saved.kind:
        raise DataError(f"{url} is for {manifest.kind}, but {saved.uri} was trained for {saved.kind}")
    if manifest.classes != saved.task.classes:
        here, there = ", ".join(manifest.classes[:6]), ", ".join(saved.task.classes[:6])
        raise DataError(
            f"{url} has other classes ({len(manifest.classes)}: {here}) than {saved.uri} was trained on "
            f"({len(saved.task.classes)}: {there}): prepare it with the same class folders"
        )


def _model(config: ModelConfig, task: Task, tensors: dict[str, Tensor], where: str) -> nn.Module:
    model = build_model(config, num_classes=task.num_outputs)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{where} doesn't fit {config.name} of this version: {summary}") from error
    return model.to(memory_format=torch.channels_last).eval()


def in_units(model: nn.Module, task: Task) -> nn.Module:
    """Return a model whose outputs are what its user means: a regression's in the units of the targets."""
    return Unstandardized(model, task.config).eval() if isinstance(task.config, RegressionConfig) else model


def _readable(storage: Storage, *, ema: bool, best: bool) -> tuple[str, StoredWeights, tuple[str, ...]]:
    """Return a run's latest (or best) valid checkpoint, what it holds, and a line for each later one that is not."""
    found, skipped = first_readable(
        storage,
        lambda key: (key, read_stored_weights(storage, key, ema=ema)),
        partial(_best, storage) if best else None,
    )
    if found is None:
        raise CheckpointError(f"{storage.uri} holds no valid checkpoint: name a run, its folder, or a checkpoint's")
    return *found, tuple(f"skipped a checkpoint: {line}" for line in skipped)


def _best(storage: Storage) -> list[str]:
    """Return the key of the checkpoint with the run's best metric, as the only one to be tried."""
    state, metadata, _ = newest_state(storage)
    if state is None:
        return []
    rules = metadata.config["checkpoint"]
    rule = BestRule(rules["best_metric"], rules["best_is"] == "highest")
    while True:
        keys = list_checkpoints(storage)
        found = best_checkpoint(storage, keys, rule)
        if not {*keys} <= {*list_checkpoints(storage)}:
            continue  # the run has pruned one while they were compared, perhaps the best of them
        if found is None:
            raise CheckpointError(f"{storage.uri} has no evaluated checkpoint; leave --best out for the latest one")
        return [found]


def _evaluated_size(config: dict[str, Any], state: TrainState, where: str) -> int:
    """Return the size at which the stage that was trained last is evaluated."""
    trained = max((index for index, result in enumerate(state.stage_results) if result), default=0)
    scale = TrainerConfig(eval_scale=config["trainer"]["eval_scale"])
    return scale.eval_size(config_from(TrainingStage, config["stages"][trained], where))

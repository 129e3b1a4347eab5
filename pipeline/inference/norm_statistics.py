"""A saved model's BatchNorm statistics, estimated again from the training data of its run."""

from __future__ import annotations

from dataclasses import replace

import torch

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.shards.resolve import load_manifest
from infra.storage.failures import reworded
from pipeline.checkpoint.recorded_config import config_from
from pipeline.inference.trained_model import SavedModel, check_classes
from pipeline.training.reestimation import reestimate_from_data


def reestimate_saved(
    saved: SavedModel, samples: int, *, url: str, device: torch.device, batch_size: int, loader_workers: int
) -> None:
    """Replace the model's running statistics by those at `saved.preprocessing.image_size`, and move it to the device.

    Args:
        saved: the model.
        samples: training samples to use: the run's sample order's first.
        url: training shards; empty: those of the run.
        device: where to compute.
        batch_size: images per batch.
        loader_workers: processes that decode images.

    Raises:
        DataError: the training data are not there, or have other classes.
    """
    recorded = config_from(DataConfig, saved.config["data"], saved.uri)
    data = replace(recorded, loader_workers=loader_workers, pyramid=False)
    if url:
        data = replace(data, train=url, train_weights=())
    try:
        manifest = load_manifest(data.train, weights=data.train_weights)
    except DataError as error:
        raise reworded(error, f"{error}; --reestimate-bn needs training shards: name them with --train-data") from error
    check_classes(saved, manifest, data.train)
    reestimate_from_data(
        saved.model.to(device),
        data,
        saved.trainer_config(eval_batch_size=batch_size),
        samples=samples,
        image_size=saved.preprocessing.image_size,
        seed=saved.config["seed"],
        device=device,
        manifest=manifest,
    )

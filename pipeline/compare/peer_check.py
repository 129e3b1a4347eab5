"""Checks before anything starts whether another library can reproduce a run."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from pipeline.compare.config import CompareError
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight


def check_peer(ready: Preflight, metric: str) -> None:
    """Raise CompareError where timm has no twin of this run: with the first reason, and the cure."""
    for reason in (*_training(ready.config, metric), *_reading(ready)):
        raise CompareError(f"peer timm: {reason}")


def _training(config: TrainConfig, metric: str) -> Iterator[str]:
    stage, trainer = config.stages[-1], config.trainer
    if find_spec("timm") is None:
        yield "timm is not installed; `uv pip install timm` adds it"
    if config.kind != "classification" or metric != "val/accuracy":
        yield "it trains classifiers by val/accuracy; leave --peer out for this recipe"
    if getattr(config.task, "focal_gamma", 0.0):
        yield "its loss is the cross-entropy; leave --task.focal-gamma out"
    if getattr(config.task, "class_weights", "none") != "none":
        yield "its classes weigh the same; leave --task.class-weights out"
    if config.data.sampling != "uniform":
        yield "an epoch of it has each image once; leave --data.sampling out"
    if config.data.aspect_ratio != 1:
        yield "its images are square; leave --data.aspect-ratio out"
    if config.worker_counts != [1]:
        yield "it trains in one process; give --cluster.num-workers 1, so that ours does too"
    if config.optimizer.layer_decay != 1:
        yield f"it has one rate for all layers, optimizer.layer_decay is {config.optimizer.layer_decay:g}; set it to 1"
    if config.optimizer.optimizer != "adamw" or stage.cutmix_alpha:
        yield "only AdamW without CutMix is the same in both; leave --peer out for this recipe"
    if stage.randaugment_magnitude not in range(10):  # Pillow refuses what timm's posterizing is at 10
        yield f"its RandAugment takes whole magnitudes up to 9, and the last stage has {stage.randaugment_magnitude:g}"
    if stage.randaugment_magnitude and config.data.randaugment_policy != "torchvision":
        yield "its RandAugment is torchvision's; leave --data.randaugment-policy out"
    if config.data.flip_order != "random":
        yield "it flips at random; leave --data.flip-order out"
    if stage.mixup_alpha and stage.batch_size % 2:
        yield f"its Mixup pairs a batch's halves; give the last stage an even batch_size, not {stage.batch_size}"
    if config.model.init_from or config.model.frozen:
        yield "it starts at random weights; leave --model.init-from and --model.frozen out"
    if config.adaptive.plateau:
        yield "its stages have their whole lengths; leave --adaptive.plateau out"
    if trainer.compile or trainer.micro_batch_size:
        yield "a step is one pass, not compiled; leave --trainer.compile and --trainer.micro-batch-size out"


def _reading(ready: Preflight) -> Iterator[str]:
    data, count = ready.config.data, len(ready.train.shards)
    if any(shard.is_cached for shard in (*ready.train.shards, *ready.val.shards)):
        yield "it reads plain shards in local folders; give --train and --val"
    if not data.pixels.is_rgb or ready.config.trainer.channel_mean:
        yield "it reads RGB of 8 bits and normalizes all channels alike; leave --peer out for this data"
    if data.train_weights:
        yield "it takes all of every shard; leave --data.train-weights out"
    if count < data.num_loaders:
        yield f"each of its loader processes needs a shard of its own; give --data.loader-workers {count}"

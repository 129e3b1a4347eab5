"""Checks before anything starts whether timm's train.py can make a run's training."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pipeline.compare.config import CompareError
from pipeline.compare.peer_flags import SCHEDULES
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight

REPOSITORY = "https://github.com/huggingface/pytorch-image-models"


def check_peer(ready: Preflight, metric: str, script: str) -> None:
    """Raise CompareError where timm's script can't train this run: with the first reason, and the cure."""
    for reason in (*_script(script), *_training(ready.config, metric), *_stages(ready.config), *_reading(ready)):
        raise CompareError(f"peer timm: {reason}")


def _script(script: str) -> Iterator[str]:
    if not script or not Path(script).is_file():
        what = f"{script} is no file" if script else "its train.py is not in the package"
        yield f"{what}; `git clone {REPOSITORY}` and give --peer-script pytorch-image-models/train.py"
    elif not Path(script).with_name("timm").is_dir() and find_spec("timm") is None:
        yield "timm is not installed, nor in the script's folder; `uv pip install timm` adds it"


def _training(config: TrainConfig, metric: str) -> Iterator[str]:
    trainer = config.trainer
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
    if config.optimizer.optimizer != "adamw":
        yield f"optimizer.optimizer is {config.optimizer.optimizer}; only AdamW is the same in both: set it to adamw"
    if config.optimizer.schedule not in SCHEDULES:
        yield f"it has no schedule {config.optimizer.schedule}; give --optimizer.schedule {' or '.join(SCHEDULES)}"
    if config.data.flip_order != "random":
        yield "it flips at random; leave --data.flip-order out"
    if config.model.init_from or config.model.frozen:
        yield "it starts at random weights; leave --model.init-from and --model.frozen out"
    if config.adaptive.plateau:
        yield "its stages have their whole lengths; leave --adaptive.plateau out"
    if trainer.compile or trainer.micro_batch_size:
        yield "a step is one pass, not compiled; leave --trainer.compile and --trainer.micro-batch-size out"


def _stages(config: TrainConfig) -> Iterator[str]:
    stage, epochs = config.stages[-1], sum(one.epochs for one in config.stages)
    if abs(epochs - round(epochs)) > 1e-6:
        yield f"it trains whole epochs, and the stages have {epochs:g} together; give --epochs {max(1, round(epochs))}"
    if stage.cutmix_alpha:
        yield "only Mixup is the same in both; leave CutMix out of the last stage"
    if stage.randaugment_magnitude not in range(10):  # Pillow refuses what timm's posterizing is at 10
        yield f"its RandAugment takes whole magnitudes up to 9, and the last stage has {stage.randaugment_magnitude:g}"
    if stage.randaugment_magnitude and config.data.randaugment_policy != "torchvision":
        yield "its RandAugment is torchvision's; leave --data.randaugment-policy out"
    odd = [one.batch_size for one in config.stages if one.batch_size % 2]
    if stage.mixup_alpha and odd:
        yield f"its Mixup pairs a batch's halves; give each stage an even batch_size, not {odd[0]}"


def _reading(ready: Preflight) -> Iterator[str]:
    data = ready.config.data
    if any(shard.packed for shard in (*ready.train.shards, *ready.val.shards)):
        yield "its images are taken from plain shards, and these are compressed; unpack them"
    if not data.pixels.is_rgb or ready.config.trainer.channel_mean:
        yield "it reads RGB of 8 bits and normalizes all channels alike; leave --peer out for this data"
    if data.train_weights:
        yield "it takes all of every shard; leave --data.train-weights out"

"""A run's config as flags of timm's train.py, and what these flags can't say. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.config import TrainConfig

PLUGIN = "pipeline.compare.peer_plugin"
MODEL, EPOCHS = "model.json", "epochs.json"
"""Files that the plugin reads and writes, in the folder in which the script runs."""
SCHEDULES = {"cosine": "cosine", "linear": "poly", "polynomial": "poly"}
"""Learning-rate schedules that both have, by this project's names."""


def sizes_of(config: TrainConfig) -> dict[int, int]:
    """Return {image size: batch size} of the stages, in their order."""
    return {stage.image_size: stage.batch_size for stage in config.stages}


def is_progressive(config: TrainConfig) -> bool:
    """Whether the image size changes."""
    return len(sizes_of(config)) > 1


def script_flags(config: TrainConfig, num_classes: int, *, bf16: bool, device: str) -> dict[str, Any]:
    """Return the flags, as values of the file that `train.py --config` reads: it takes fractions of an epoch too."""
    stage, data, trainer, how = config.stages[-1], config.data, config.trainer, config.optimizer
    eval_size, sizes = trainer.eval_size(stage), sizes_of(config)
    batch_scale = stage.batch_size / how.lr_per_batch if how.lr_per_batch else 1.0
    magnitude, depth = stage.randaugment_magnitude, stage.stochastic_depth
    flags: dict[str, Any] = {
        "data_dir": ".", "train_split": "train", "val_split": "val", "class_map": "classes.txt",
        "device_modules": [PLUGIN], "model": "crescendo", "num_classes": num_classes, "device": device,
        "channels_last": True, "workers": data.num_loaders,
        "amp": bf16, "amp_dtype": "bfloat16", "seed": config.seed,
        "input_size": [3, eval_size, eval_size], "interpolation": "bilinear", "train_interpolation": "bilinear",
        "crop_pct": 1.0 if _evaluates_whole(config) else eval_size / (eval_size + 32),
        "mean": [trainer.pixel_mean / 255] * 3, "std": [trainer.pixel_std / 255] * 3,
        "scale": list(stage.crop_area or data.crop_area), "ratio": list(data.crop_ratio),
        "hflip": 0.5 if data.flip else 0.0, "color_jitter": 0.0,
        "aa": rand_augment(magnitude, data.randaugment_layers) if magnitude else None,
        "mixup": stage.mixup_alpha, "smoothing": getattr(config.task, "label_smoothing", 0.0),
        "drop": stage.dropout, "drop_path": config.model.stochastic_depth if depth is None else depth,
        "opt": "adamw", "opt_betas": [how.momentum, 0.999], "opt_kwargs": {"foreach": device == "cpu"},
        "weight_decay": how.weight_decay, "clip_grad": how.clip_norm, "lr": how.lr * batch_scale,
        "sched": SCHEDULES[how.schedule], "decay_rate": how.power if how.schedule == "polynomial" else 1.0,
        "sched_on_updates": True, "warmup_epochs": how.warmup_epochs, "warmup_lr": 0.0, "min_lr": how.min_lr,
        "model_ema": bool(how.ema_decay), "model_ema_decay": how.ema_decay, "model_ema_warmup": True,
        "epochs": round(sum(one.epochs for one in config.stages)), "batch_size": stage.batch_size,
        "validation_batch_size": trainer.eval_batch_size, "val_interval": max(1, int(trainer.eval_every_epochs)),
        "log_interval": 10**9, "checkpoint_hist": 1, "output": ".", "experiment": "out",
    }  # fmt: skip
    if list(sizes) != [eval_size]:
        flags |= {"train_img_sizes": list(sizes), "train_batch_sizes": list(sizes.values())}
    if is_progressive(config):
        flags["train_size_schedule"] = "progressive"
    return flags


def _evaluates_whole(config: TrainConfig) -> bool:
    from datasets.transforms.decode import takes_whole  # imports PyTorch, which a command line does without

    return takes_whole(config.trainer.eval_size(config.stages[-1]), config.data.eval_crop)


def rand_augment(magnitude: float, layers: int) -> str:
    """Return what timm calls RandAugment as ours is: each operation is carried out, and the stronger the higher the
    magnitude. By timm's defaults half of them are not, and solarizing and others grow weaker with it."""
    return f"rand-m{magnitude:g}-n{layers}-p1-inc1"


def differences(config: TrainConfig) -> Iterator[str]:
    """Say what the script does in another way, for the report."""
    stages, last = config.stages, config.stages[-1]
    yield "it reads image files, which are written from the shards before the clock starts"
    yield "Pillow decodes and resizes; the order of images, RandAugment's operations and Mixup's pairs are its own"
    if config.optimizer.ema_decay:
        yield "its moving average begins with 1 - (1 + n)^(-2/3) in place of (1 + n) / (10 + n) after n steps"
    if config.optimizer.warmup_epochs:
        yield "its schedule counts the warm-up as a part of the decay"
    if _evaluates_whole(config):
        yield "of an image that is no square it evaluates the central square, not the whole"
    if not is_progressive(config):
        return
    yield "each step's size is drawn around one that grows with the epoch, a tenth of the steps at any size"
    if any(one.randaugment_magnitude != last.randaugment_magnitude or one.mixup_alpha != last.mixup_alpha
           or one.dropout != last.dropout for one in stages):  # fmt: skip
        yield "its flags have one strength of RandAugment, Mixup and dropout: the last stage's"
    if any(one.crop_area != last.crop_area for one in stages):
        yield "and one crop area: the last stage's"
    if any(one.lr_factor != 1 for one in stages):
        yield "and no learning-rate factor of a size"
    if any(one.low_frequency_of or one.random_sizes for one in stages):
        yield "and no stages of several sizes or low frequencies"

"""EfficientNetV2-S/M/L on ImageNet, as printed in the paper and as in the authors' released code."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from datasets.config import DataConfig
from model.config import ModelConfig
from pipeline.config import (
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from pipeline.schedule.stages import ramp

IMAGENET_SHARDS = "s3://YOUR-BUCKET/imagenet/train"
"""Where the ImageNet recipes look for training shards until `--data.train` says otherwise."""


# Last training size, evaluation size, RandAugment's, Mixup's (and CutMix's) and dropout's last values.
_PAPER = {"s": (300, 384, 15, 0.0, 0.3), "m": (380, 480, 20, 0.2, 0.4), "l": (380, 480, 25, 0.5, 0.5)}


_GOOGLE = {"s": (300, 384, 10, 0.0, 0.2), "m": (384, 480, 15, 0.2, 0.3), "l": (384, 480, 20, 0.5, 0.4)}


def efficientnetv2_s_paper() -> TrainConfig:
    """EfficientNetV2-S on ImageNet, stages as the paper prints them (arXiv 2104.00298, table 6)."""
    return _imagenet("s", "paper")


def efficientnetv2_m_paper() -> TrainConfig:
    """EfficientNetV2-M on ImageNet, stages as the paper prints them."""
    return _imagenet("m", "paper")


def efficientnetv2_l_paper() -> TrainConfig:
    """EfficientNetV2-L on ImageNet, stages as the paper prints them."""
    return _imagenet("l", "paper")


def efficientnetv2_s_google() -> TrainConfig:
    """EfficientNetV2-S on ImageNet, stages as the authors' released code makes them."""
    return _imagenet("s", "google")


def efficientnetv2_m_google() -> TrainConfig:
    """EfficientNetV2-M on ImageNet, stages as the authors' released code makes them."""
    return _imagenet("m", "google")


def efficientnetv2_l_google() -> TrainConfig:
    """EfficientNetV2-L on ImageNet, stages as the authors' released code makes them."""
    return _imagenet("l", "google")


def _imagenet(size: Literal["s", "m", "l"], preset: Literal["paper", "google"]) -> TrainConfig:
    last, eval_size, magnitude, mixup, dropout = (_PAPER if preset == "paper" else _GOOGLE)[size]
    stages = ramp(
        epochs=350,
        batch_size=4096,
        image_size=(128, last),
        randaugment_magnitude=(5, magnitude),
        mixup_alpha=(0, mixup),
        # The released code ramps both to the same alpha and gives each one half of a batch (google/automl).
        cutmix_alpha=(0, mixup if preset == "google" else 0.0),
        dropout=(0.1, dropout),
    )
    if preset == "google":  # the released code: sizes don't begin at the smallest, and dropout is constant
        stages = tuple(
            replace(stage, image_size=int(128 + (last - 128) * (index + 1) / len(stages)), dropout=dropout)
            for index, stage in enumerate(stages)
        )
    return TrainConfig(
        name=f"efficientnetv2-{size}-{preset}",
        storage="s3://YOUR-BUCKET/runs",
        stages=stages,
        data=DataConfig(
            train=IMAGENET_SHARDS,
            val="s3://YOUR-BUCKET/imagenet/val",
            num_lanes=64,
            randaugment_policy="google",  # the paper's runs were the authors' code's too
        ),
        model=ModelConfig(name=f"efficientnet_v2_{size}", norm_momentum=0.01 if preset == "paper" else 0.1),
        optimizer=OptimizerConfig(),
        trainer=TrainerConfig(eval_scale=eval_size / last, log_every=50),
    )
